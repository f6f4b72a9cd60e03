package expr

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"

	"github.com/abacusdb/abacus/compute/job"
)

// CEL reports faults in its own words, of overloads and containers. Here they get those of somebody who wrote one line for a job.
var (
	undeclared = regexp.MustCompile(`^undeclared reference to '([^']*)'`)
	noOverload = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'$`)
	unexpected = regexp.MustCompile(`^Syntax error: (?:mismatched input|extraneous input|no viable alternative at input|token recognition error at:) '(.*?)'(?: expecting .*)?$`)
	nestsDeep  = regexp.MustCompile(`recursion|lookahead limit|depth exceeded|node limit|nesting`)
)

// natives is what the words of native maps are in an expression.
var natives = map[string]string{
	"value": "v", "len": "size(v)", "square": "v * v", "lower": "v.lowerAscii()", "words": "v.split(' ')",
	"parse": "double(v)", "now": "", "rand": "", "random": "",
}

// wordOperators is how an expression writes what is another word elsewhere.
var wordOperators = map[string]string{
	"and": "in an expression that is &&; and joins conditions, such as: key prefix a and json:n range 1..", "or": "in an expression that is ||",
	"not": "in an expression that is !", "=": "in an expression that is ==", "&": "in an expression that is &&", "|": "in an expression that is ||",
}

func firstFault(src string, issues *cel.Issues, e *cel.Env, as string) error {
	all := issues.Errors()
	if len(all) == 0 {
		return &Error{Source: src, Reason: issues.Err().Error()}
	}
	first := all[0]
	fault := place(&Error{Source: src, Reason: first.Message}, first.Location.Line(), first.Location.Column())
	if m := undeclared.FindStringSubmatch(first.Message); m != nil {
		fault.Reason, fault.Hint = "there is no "+shorten(m[1]), nameHint(m[1], e, as)
	} else if m := noOverload.FindStringSubmatch(first.Message); m != nil {
		fault.Reason, fault.Hint = callFault(m[1], m[2], e)
	} else if m := unexpected.FindStringSubmatch(first.Message); m != nil {
		fault.Reason = "unexpected " + m[1]
		if hint, ok := wordOperators[strings.TrimSpace(m[1])]; ok {
			fault.Reason, fault.Hint = "unexpected "+strings.TrimSpace(m[1]), hint
		} else if strings.Contains(src, "json:") {
			fault.Hint = "json:PATH is a word of its own; in an expression the document is v: v.field"
		}
	} else if nestsDeep.MatchString(first.Message) {
		return &Error{Source: src, Reason: "the expression is nested too deep", Hint: fmt.Sprintf("at most about %d levels, and as many terms in a row of + or ? :", maxNesting)}
	} else if first.Message == "invalid matches argument" {
		fault.Reason = "the pattern is no regular expression of RE2"
	} else if strings.HasSuffix(first.Message, "does not support field selection") && as != job.AsJSON {
		fault.Hint = "only documents have fields: as json"
	}
	fault.Reason = strings.TrimPrefix(fault.Reason, "Syntax error: ")
	fault.Reason = strings.NewReplacer("'<EOF>'", "end of the expression", "<EOF>", "end of the expression").Replace(fault.Reason)
	fault.Reason = shorten(fault.Reason)
	return fault
}

func nameHint(name string, e *cel.Env, as string) string {
	switch word, isNative := natives[name]; {
	case isNative && word == "":
		return "an expression sees no clock and no random number, so that every replica comes to the same"
	case isNative:
		return fmt.Sprintf("in an expression that is %s", word)
	case len(name) > 40: // no slip of the hand
		return "known are v (the value) and key"
	}
	if near := nearest(name, e); near != "" {
		return "did you mean " + near + "?"
	}
	if as == job.AsJSON && !strings.Contains(name, ".") {
		return "a field of the document is v." + name + "; known are v and key"
	}
	return "known are v (the value) and key"
}

// nearest finds the known name that is a slip of the hand away.
func nearest(name string, e *cel.Env) string {
	known := []string{"key"}
	for fn, decl := range e.Functions() {
		if fn[0] >= 'a' && fn[0] <= 'z' && !decl.IsDeclarationDisabled() { // no operators, and nothing of CEL's own
			known = append(known, fn)
		}
	}
	for _, m := range e.Macros() {
		known = append(known, m.Function())
	}
	slices.Sort(known) // of names that are equally near the same one is told
	best, nearest := 1+min(2, len(name)/3), ""
	for _, candidate := range known {
		d := distance(name, candidate)
		if len(name) > 2 && strings.HasPrefix(candidate, name) {
			d = min(d, 1)
		}
		if d < best {
			best, nearest = d, candidate
		}
	}
	return nearest
}

// distance is how many letters must be changed, left out or put in to make b of a; case does not count.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// callFault tells of a function that does not take what it is given. signature is CEL's: "(string, int)", or "string.(int)" of a member.
func callFault(function, signature string, e *cel.Env) (reason, hint string) {
	target, args, _ := strings.Cut(strings.TrimSuffix(signature, ")"), "(")
	target = strings.TrimSuffix(target, ".")
	symbol, isOperator := operators.FindReverse(function)
	switch {
	case isOperator && symbol != "" && function != operators.Index:
		kinds := strings.Split(args, ", ")
		reason = "no operator " + symbol + " for " + typeName(strings.Join(kinds, " and "))
		if slices.Contains(kinds, "string") && len(kinds) == 2 && kinds[0] != kinds[1] {
			hint = "int(…) and double(…) make a number of a text, string(…) a text of a number"
		}
	case function == operators.Index:
		container, _, _ := strings.Cut(args, ", ")
		reason = "[…] cannot look into " + typeName(container)
	case function == operators.Conditional:
		reason, hint = "? : needs a condition and two results of one type, this is "+typeName(args), "dyn(…) around a result lets the types differ"
	case target != "":
		reason = fmt.Sprintf("%s.%s(%s) does not exist", typeName(target), function, typeName(args))
	default:
		reason = fmt.Sprintf("%s(%s) does not exist", function, typeName(args))
	}
	if hint == "" && !isOperator {
		hint = takes(function, e)
	}
	return reason, hint
}

// takes lists what a function can be called with.
func takes(function string, e *cel.Env) string {
	fn, ok := e.Functions()[function]
	if !ok {
		return ""
	}
	var forms []string
	for _, o := range fn.OverloadDecls() {
		args := make([]string, len(o.ArgTypes()))
		for i, t := range o.ArgTypes() {
			args[i] = typeName(cel.FormatCELType(t))
		}
		form := function + "(" + strings.Join(args, ", ") + ")"
		if o.IsMemberFunction() {
			form = args[0] + "." + function + "(" + strings.Join(args[1:], ", ") + ")"
		}
		forms = append(forms, form)
	}
	const enough = 4
	if len(forms) > enough {
		forms = append(forms[:enough], "…")
	}
	return "there is " + strings.Join(forms, ", ")
}

// typeName is a type as a user knows it.
func typeName(t string) string {
	return strings.NewReplacer("google.protobuf.Timestamp", "timestamp", "google.protobuf.Duration", "duration", "null_type", "null").Replace(t)
}
