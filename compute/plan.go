package compute

import (
	"slices"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

const (
	// defaultTasksPerReplica: several, so that a slow or lost replica costs a part of its share, not all of it.
	defaultTasksPerReplica = 4
	// minTaskRecords: a shard of fewer is its leader's task, for to hand it out would take longer than to do it.
	minTaskRecords = 2048
	// usefulTaskRecords and usefulTaskBytes: a shard of less than several of these has no more tasks than it has of them, for each task
	// costs what reading some 1,200 records does.
	usefulTaskRecords = 32 << 10
	usefulTaskBytes   = 8 << 20
	// slowTaskRecords takes the place of the former where a record may take milliseconds: what a task costs is nothing to that.
	slowTaskRecords = 512
	// maxTaskRecords and maxTaskBytes keep a task near a second of work, so that retries are cheap.
	maxTaskRecords = 1 << 20
	maxTaskBytes   = 64 << 20
	// maxTasks bounds a shard's tasks, and with them its report.
	maxTasks = 256
	// recordCost is what a record costs beside its bytes, in bytes: to find it and to begin on it.
	recordCost = 64
)

// ReplicaState is what the master knows of one replica of its shard.
type ReplicaState struct {
	Node   string
	Leader bool
	Alive  bool
	// Share is how much of its processors its node lets tasks have, as it said last; 0 if it did not.
	Share float64
}

// Task is a run of slots of one shard, for one replica to read.
type Task struct {
	ID      int
	From    sharding.Slot
	To      sharding.Slot
	Records int64 // about how many keys it holds, with any prefix
	Bytes   int64 // about how many bytes their keys and values have
}

// Plan cuts a shard's slots into tasks of about equal numbers of bytes. The
// tasks cover every slot exactly once whatever count says: the counters steer, they do
// not decide what is read. A slot is never cut, so a task may hold more than its share.
func Plan(count func(sharding.Slot) (records, bytes int64), slots []sharding.SlotRange, replicas int, spec job.Spec) []Task {
	size := func(slot int) (records, bytes int64) {
		records, bytes = count(sharding.Slot(slot))
		return max(records, 0), max(bytes, 0)
	}
	var records, bytes int64
	for _, r := range slots {
		for slot := int(r.From); slot <= int(r.To); slot++ {
			n, b := size(slot)
			records, bytes = records+n, bytes+b
		}
	}
	left := bytes + recordCost*records
	wanted := int64(wantedTasks(records, bytes, replicas, spec))
	share := max((left+wanted-1)/wanted, 1)

	var tasks []Task
	for _, r := range slots {
		task := Task{From: r.From}
		for slot := int(r.From); slot <= int(r.To); slot++ {
			n, b := size(slot)
			task.Records, task.Bytes = task.Records+n, task.Bytes+b
			left -= b + recordCost*n
			// Empty slots after the last record are not worth a task; the last task allowed takes
			// what is left of the range; the last slot of a range always ends one.
			full := task.cost() >= share && left > 0 && len(tasks) < maxTasks-1
			if full || slot == int(r.To) {
				task.ID, task.To = len(tasks), sharding.Slot(slot)
				tasks = append(tasks, task)
				task = Task{From: sharding.Slot(slot + 1)}
			}
		}
	}
	return tasks
}

func (t Task) cost() int64 { return t.Bytes + recordCost*t.Records }

func wantedTasks(records, bytes int64, replicas int, spec job.Spec) int {
	replicas = max(replicas, 1)
	if spec.TasksPerReplica > 0 {
		return min(spec.TasksPerReplica*replicas, maxTasks)
	}
	few := int64(usefulTaskRecords)
	if slow(spec) {
		few = slowTaskRecords
	}
	useful := max((records+few-1)/few, (bytes+usefulTaskBytes-1)/usefulTaskBytes)
	wanted := min(int64(defaultTasksPerReplica*replicas), useful)
	return int(min(max(wanted, records/maxTaskRecords, bytes/maxTaskBytes, 1), maxTasks))
}

// slow says that a record may take milliseconds, whatever its size: the spec has an expression, a regular expression or a function that the
// servers were built with.
func slow(spec job.Spec) bool {
	conditions, _ := job.ParseFilter(spec.Filter)
	m, _ := spec.MapFunc()
	flat, _ := spec.FlatMapFunc()
	group, _ := spec.GroupByFunc()
	return m.Word == job.FuncGo || m.IsExpression() || flat.IsExpression() || group.IsExpression() ||
		slices.ContainsFunc(conditions, func(c job.Condition) bool { return c.Op == job.FilterRe || c.Op == job.FuncGo || c.Op == job.FuncCEL })
}
