package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newUpgradeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade",
		Short: "Turn on what is new, once all nodes run a new version; there is no way back from it",
		Long: `Turn on what is new in this version, once all nodes run it. Before, nodes are upgraded one by one (stop, new abacusd, start), and may go back to the
version before in the same way: what is new is refused. Afterwards no older version can be a member. A cluster that was founded by this version needs no upgrade.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.admin(ctx, cmd, c, "what is new is in use; no older version can be a member any more", "upgrade")
			})
		},
	}
}
