// Package campaign breaks a cluster of real processes for a while, in many ways and under load, and judges what its clients saw.
//
// A run is: a bed (bed.go), that is hosts on a network of their own, each with a disk of its own; clients at work (drive.go), whose
// operations and checkers are those of chaos/workload; and faults, one step of a plan after another (plan.go, nemeses.go). Afterwards everything
// is healed, read back, and the replicas are compared (finish.go). What came of it is a Report (report.go), which can be
// looked at as a page (page.go).
//
// The loop to read first is campaign.steps in run.go. Which kinds of faults there are is the table in nemeses.go; what a seed makes of
// them is plan, a pure function.
//
// Who owns what: the goroutine of steps begins and ends every fault; one that lasts (flapping, say) has a goroutine of its own between. The bed's keeper restarts processes that have
// ended by themselves, as a service manager would, unless a step holds the node down. Clients note in the timeline what happened and know nothing of
// faults.
//
// It needs Linux, and root for namespaces, nftables, loop devices and strace; without, Config.Rootless does less.
package campaign
