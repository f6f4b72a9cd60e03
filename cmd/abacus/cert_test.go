package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCert shows what `abacus cert` makes, that it says what to do next, and what it refuses.
func TestCert(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs")
	for _, tc := range []struct {
		args   []string
		code   int
		stdout string // the files
		stderr string
	}{
		{[]string{"node", dir, "--id", "n1", "--host", "10.0.0.1"}, exitFailed, "", "make CAs there first"},
		{[]string{"ca", dir}, exitOK, "peer-ca.crt peer-ca.key client-ca.crt client-ca.key", "cert node"},
		{[]string{"ca", dir}, exitFailed, "", "not overwritten"},
		{[]string{"node", dir, "--id", "n1", "--host", "10.0.0.1"}, exitOK, "n1-peer.crt n1-peer.key n1-client.crt n1-client.key", "--peer-cert"},
		{[]string{"node", dir, "--id", "n1", "--host", "10.0.0.1"}, exitFailed, "", "not overwritten"},
		{[]string{"node", dir, "--id", "../x", "--host", "a"}, exitUsage, "", "--id"},
		{[]string{"node", dir, "--id", "n2"}, exitUsage, "", "--host is missing"},
		{[]string{"client", dir, "--name", "app", "--days", "7"}, exitOK, "app.crt app.key", "--cert"},
		{[]string{"client", dir, "--name", "a/b"}, exitUsage, "", "--name"},
		{[]string{"client", dir, "--name", "b", "--days", "0"}, exitUsage, "", "--days"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(append([]string{"cert"}, tc.args...), strings.NewReader(""), &stdout, &stderr)
		want := ""
		for _, f := range strings.Fields(tc.stdout) {
			path := filepath.Join(dir, f)
			want += path + "\n"
			if info, err := os.Stat(path); err != nil || strings.HasSuffix(f, ".key") && info.Mode().Perm() != 0o600 {
				t.Errorf("%v: %s: %v, %v", tc.args, f, info, err)
			}
		}
		if code != tc.code || stdout.String() != want || !strings.Contains(stderr.String(), tc.stderr) {
			t.Errorf("%v: exit code %d, want %d\nstdout %q, want %q\nstderr %q, want %q", tc.args, code, tc.code, stdout.String(), want, stderr.String(), tc.stderr)
		}
	}
}
