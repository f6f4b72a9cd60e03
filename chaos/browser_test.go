//go:build tools

package chaos_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// browser is a headless Chromium with one tab, spoken to by its DevTools protocol over a pair of pipes: a message is JSON that ends with
// a zero byte. The goroutine that reads them ends with the process.
type browser struct {
	t       *testing.T
	in      *os.File
	session string

	mu       sync.Mutex
	last     int
	waiting  map[int]chan reply
	problems []string // what the page logged or the browser refused
}

type reply struct {
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// startBrowser fails the test if there is no Chromium: what is not looked at is not shown.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: install the package chromium (apt-get install chromium)")
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// The sandbox does not work for root.
	cmd := exec.Command(path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
		"--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4, as the protocol has it
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, in: in, waiting: map[int]chan reply{}}
	read := make(chan struct{})
	go func() { defer close(read); b.read(out) }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the page's problems: %q\nchromium: %.2000s", b.problems, said.String())
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its group: it starts helpers, which write into its directory
		in.Close()
		cmd.Wait()
		out.Close()
		<-read
	})
	var target struct{ TargetID, SessionID string }
	b.call(&target, "Target.createTarget", map[string]any{"url": "about:blank"})
	b.call(&target, "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true})
	b.session = target.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(nil, domain+".enable", nil)
	}
	return b
}

func (b *browser) read(out *os.File) {
	r := bufio.NewReader(out)
	for {
		raw, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			reply
			ID     int             `json:"id"`
			Method string          `json:"method"`
			Params json.RawMessage `json:"params"`
		}
		if json.Unmarshal(raw[:len(raw)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		switch {
		case m.ID != 0:
			b.waiting[m.ID] <- m.reply // each has room for its one answer
			delete(b.waiting, m.ID)
		case m.Method == "Runtime.exceptionThrown", m.Method == "Log.entryAdded" && bytes.Contains(m.Params, []byte(`"level":"error"`)):
			b.problems = append(b.problems, string(m.Params))
		}
		b.mu.Unlock()
	}
}

// call is one call of the protocol; its result goes into result, unless that is nil.
func (b *browser) call(result any, method string, params map[string]any) {
	b.t.Helper()
	if err := b.try(result, method, params); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
}

func (b *browser) try(result any, method string, params map[string]any) error {
	b.mu.Lock()
	b.last++
	id, answered := b.last, make(chan reply, 1)
	b.waiting[id] = answered
	b.mu.Unlock()
	message := map[string]any{"id": id, "method": method}
	if params != nil {
		message["params"] = params
	}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	raw, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(raw, 0)); err != nil {
		return err
	}
	select {
	case r := <-answered:
		if r.Error != nil {
			return errors.New(r.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(r.Result, result)
	case <-time.After(30 * time.Second):
		return errors.New("no answer for 30 s")
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	var r struct{ ErrorText string }
	if b.call(&r, "Page.navigate", map[string]any{"url": url}); r.ErrorText != "" {
		b.t.Fatalf("open %s: %s", url, r.ErrorText)
	}
}

// eval returns what an expression of the page's script says, into result.
func (b *browser) eval(result any, expression string) error {
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	if err := b.try(&r, "Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}); err != nil {
		return err
	}
	if r.ExceptionDetails != nil {
		return fmt.Errorf("%s: %s", expression, r.ExceptionDetails)
	}
	return json.Unmarshal(r.Result.Value, result)
}

// until waits until an expression is true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	var ok bool
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = b.eval(&ok, "!!("+expression+")"); err == nil && ok {
			return
		}
	}
	var text string
	_ = b.eval(&text, "document.body.innerText")
	b.t.Fatalf("%s: not within 30 s (%v); the page shows:\n%.4000s", what, err, text)
}

// look sets the size of the window and the colours that its user prefers.
func (b *browser) look(width, height int, scheme string) {
	b.t.Helper()
	b.call(nil, "Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false})
	b.call(nil, "Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
}

// picture is the window as PNG.
func (b *browser) picture() []byte {
	b.t.Helper()
	var r struct{ Data string }
	b.call(&r, "Page.captureScreenshot", map[string]any{"format": "png"})
	raw, err := base64.StdEncoding.DecodeString(r.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	return raw
}

func (b *browser) troubles() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.problems...)
}
