package front

import "context"

func backupCommands() []*spec {
	return []*spec{
		{name: "abacus.backup", arity: 3, flags: flagAdmin, group: "server", since: "7.2.0",
			summary: "Reads a replica here as of one log index, for abacus backup: OPEN shard, READ view, KEEP view, CLOSE view.", run: (*conn).abacusBackup},
	}
}

// abacusBackup is ABACUS.BACKUP OPEN shard | READ view | KEEP view | CLOSE view.
func (c *conn) abacusBackup(ctx context.Context, args [][]byte) error {
	answer, err := c.srv.backend.Backup(ctx, []string{string(args[1]), string(args[2])})
	if err != nil {
		return adminError(err)
	}
	c.w.Bulk(answer)
	return nil
}
