package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// Every command that the documentation shows is one that there is, with flags that it has; where it is shown as it is typed, with arguments that it takes.
func TestDocumentedCommands(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	typed, told := 0, 0
	for _, page := range append(pages, "../../README.md") {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(page) == "CHANGELOG.md" { // what was, need not be
			continue
		}
		text := strings.ReplaceAll(string(raw), "\\\n", strings.Repeat(" ", 2)) // a line that goes on
		inBlock, shell := false, false
		for _, line := range strings.Split(text, "\n") {
			if strings.HasPrefix(line, "```") {
				inBlock = !inBlock
				shell = inBlock && line == "```sh"
				continue
			}
			where := fmt.Sprintf("%s: %q", page, line)
			if shell {
				for _, words := range commandsOf(line) {
					typed++
					if err := knows(words, true); err != nil {
						t.Errorf("%s: %v", where, err)
					}
				}
			}
			for _, m := range inlineCommand.FindAllStringSubmatch(line, -1) {
				told++
				if err := knows(strings.Fields(m[1]), false); err != nil && !inBlock {
					t.Errorf("%s: %v", where, err)
				}
			}
		}
	}
	if typed < 50 || told < 30 {
		t.Errorf("%d commands as they are typed and %d in sentences: they are not found any more", typed, told)
	}
}

// inlineCommand is a command in a sentence, unless it stands for several.
var inlineCommand = regexp.MustCompile("`(?:bin/)?abacus ([^`|…\\[<]+)`")

// commandsOf are the words of each abacus that a line of shell calls, as far as documentation goes: no variables, no loops but one's body.
func commandsOf(line string) (list [][]string) {
	var words []string
	var word strings.Builder
	begun, quote := false, rune(0)
	next := func() {
		if begun {
			words = append(words, word.String())
		}
		word.Reset()
		begun = false
	}
	end := func() {
		next()
		for len(words) > 0 && (words[0] == "do" || strings.Contains(words[0], "=")) {
			words = words[1:]
		}
		if len(words) > 0 && (words[0] == "abacus" || words[0] == "bin/abacus") {
			list = append(list, words[1:])
		}
		words = nil
	}
	for i, r := range line {
		switch {
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == '#' && !begun:
			end()
			return list
		case r == '>' || r == '<' && !strings.HasPrefix(line[i:], "<("):
			end() // what is behind it is a file
			words = append(words, "a file")
		case strings.ContainsRune("&|;()$<", r) && !(r == '$' && !strings.HasPrefix(line[i:], "$(")):
			end()
		case r == ' ':
			next()
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	end()
	return list
}

// knows says what is wrong with a command line; whole: with its arguments, too.
func knows(words []string, whole bool) error {
	root := (&app{}).command()
	refuseUnknownCommands(root)
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); errors.Is(err, pflag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if args := cmd.Flags().Args(); whole || cmd.HasSubCommands() && len(args) > 0 {
		return cmd.ValidateArgs(args)
	}
	return nil
}

func TestCommandsOf(t *testing.T) {
	for line, want := range map[string]string{
		`for i in 0 1; do bin/abacus put num/$i $i; done`:                     `[[put num/$i $i]]`,
		`id=$(bin/abacus job submit --prefix num/)   # abacus no`:             `[[job submit --prefix num/]]`,
		`bin/abacus export --prefix num/ > num.kv && abacus import "a b" | x`: `[[export --prefix num/] [import a b]]`,
		`curl abacus`:                          `[]`,
		`X=1 abacus --addr new:7401 get 'a#b'`: `[[--addr new:7401 get a#b]]`,
	} {
		if got := fmt.Sprint(commandsOf(line)); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}
