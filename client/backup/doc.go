// Package backup writes the keys of a whole cluster to a file or a directory, each shard as of one log index, and reads them back:
// Create, Open, Backup.Verify, Backup.Each. docs/backup.md is the format, byte by byte.
//
// The package has no goroutines of its own but those that Create waits for. The nodes hold the views that Create reads (client.ShardView)
// and encode the records (AppendRecord), so that what goes into the file is what a node has read, unchanged.
package backup
