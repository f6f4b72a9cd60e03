package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newPingCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ping",
		Short: "Ask a node for a sign of life",
		Long: `Ask a node for a sign of life. It answers whatever the state of the cluster, and whoever asks: no token is needed. For the health
check of a container, with --addr of that node alone; "status" says how the cluster is.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.Ping(ctx); err != nil {
					return err
				}
				return a.carriedOut(cmd, "it answers")
			})
		},
	}
}
