package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/abacusdb/abacus/compute"
)

// jobLoad is what jobs do on a node, and what it can spare for them. Peers tell it to each other.
type jobLoad struct {
	Running int `json:"running"` // tasks
	Waiting int `json:"waiting"` // tasks, for a turn
	// Share is how much of its processors the node lets tasks have.
	Share float64 `json:"cpu_share"`
	// Pins are the states at one index that its replicas keep; Memory is about what tables take, in bytes.
	Pins   int   `json:"pins"`
	Memory int64 `json:"memory_bytes"`
}

func (n *Node) jobLoad() *jobLoad {
	s := n.admission.Stats()
	l := &jobLoad{Share: s.Share, Memory: s.MemoryBytes}
	for class := range compute.Priorities {
		l.Running += s.Running[class]
		l.Waiting += s.Waiting[class]
	}
	for _, st := range n.host.all() {
		l.Pins += st.Pins().Live
	}
	return l
}

// admissionCollector tells what jobs take of this node.
type admissionCollector struct{ n *Node }

var (
	descJobShare   = prometheus.NewDesc("abacus_job_cpu_share", "How much of GOMAXPROCS tasks of jobs may use now; it is steered while there are tasks.", nil, nil)
	descJobLatency = prometheus.NewDesc("abacus_job_scheduler_latency_seconds", "99th percentile of how long goroutines waited for a processor, as it was seen last while there were tasks.", nil, nil)
	descJobWaits   = prometheus.NewDesc("abacus_job_wait_seconds_total", "How long tasks waited: for a turn, for processor time (cpu), for bytes to read (scan).", []string{"for"}, nil)
	descJobMemory  = prometheus.NewDesc("abacus_job_memory_bytes", "About what tables of tasks and of shards' parts take.", nil, nil)
	descJobRefused = prometheus.NewDesc("abacus_job_memory_refusals_total", "Tasks and shards' parts that were refused for want of memory, and tried again.", nil, nil)
	descJobTasks   = prometheus.NewDesc("abacus_job_tasks", "Tasks on this node.", []string{"state", "priority"}, nil)
)

func (c admissionCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descJobShare, descJobLatency, descJobWaits, descJobMemory, descJobRefused, descJobTasks} {
		ch <- d
	}
}

func (c admissionCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	s := c.n.admission.Stats()
	gauge(descJobShare, s.Share)
	gauge(descJobLatency, s.SchedulerLatency.Seconds())
	count(descJobWaits, s.WaitedTurn.Seconds(), "turn")
	count(descJobWaits, s.WaitedCPU.Seconds(), "cpu")
	count(descJobWaits, s.WaitedScan.Seconds(), "scan")
	gauge(descJobMemory, float64(s.MemoryBytes))
	count(descJobRefused, float64(s.MemoryRefused))
	for class, priority := range compute.Priorities {
		gauge(descJobTasks, float64(s.Running[class]), "running", priority)
		gauge(descJobTasks, float64(s.Waiting[class]), "waiting", priority)
	}
}
