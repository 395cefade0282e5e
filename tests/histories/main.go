// Command histories checks recorded histories of a ledger for linearizability: whether there is an order of all operations, each of them at
// one moment between its call and its return, in which a simple ledger that does one thing at a time would have answered the same.
//
// A line of the file is a JSON object. Each group has one line with the posted balances that it begins with, in minor units, and credit
// limits if there are any:
//
//	{"group":"g","init":{"a":100,"b":0},"limits":{"a":50}}
//
// Every other line is an operation, with the client that asked, the nanoseconds of a monotonic clock at its call and its return, its kind, and
// what the kind needs:
//
//	{"group":"g","client":3,"call":12,"return":45,"kind":"read_account","account":"a","posted":100,"held":0}
//
// A transfer posts its legs in order, all or none, and a later leg may use what an earlier one brings. A hold sets the money of its legs aside,
// and none of them uses what another brings. A capture posts what is held, or the part given as its amount, and a void gives it back. A
// reverse posts the legs of a completed transfer or captured hold from the last to the first, each the other way round, and succeeds once. Its
// rejectedLeg counts in that order. An expire is not asked for: it stands for a hold that the ledger let run out at some moment of the interval,
// and a history needs one for every such hold. The fields of each kind are in shapes; a rejected operation has its rejectedLeg as well, and a
// completed one may have postings, all those of the accounts that its caller sees.
//
// The command exits with 0 if every group of the file has such an order, with 1 if a group has none, and with 2 if it cannot say: the file does
// not read, or a check needs more time or memory than it may take.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	exitLinearizable = iota
	exitNotLinearizable
	exitCannotSay
)

// shown is how many operations of the end of the longest order a report shows.
const shown = 5

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the command without the process around it.
func run(arguments []string, out, problems io.Writer) int {
	flags := flag.NewFlagSet("histories", flag.ContinueOnError)
	flags.SetOutput(problems)
	flags.Usage = func() {
		fmt.Fprintln(problems, "usage: histories [-timeout 120s] [-states 2000000] FILE.jsonl")
		flags.PrintDefaults()
	}
	timeout := flags.Duration("timeout", 120*time.Second, "how long the check of one group may take")
	states := flags.Int64("states", 2_000_000, "how many states the check of one group may keep in memory, about 1.5 KB each for 5,000 operations")
	if err := flags.Parse(arguments); err != nil {
		return exitCannotSay
	}
	if flags.NArg() != 1 || *timeout <= 0 || *states <= 0 {
		flags.Usage()
		return exitCannotSay
	}
	file, err := os.Open(flags.Arg(0))
	if err != nil {
		fmt.Fprintf(problems, "histories: %v\n", err)
		return exitCannotSay
	}
	defer file.Close()
	groups, err := read(file)
	if err != nil {
		fmt.Fprintf(problems, "histories: %s: %v\n", flags.Arg(0), err)
		return exitCannotSay
	}
	begin, operations := time.Now(), 0
	count := map[porcupine.CheckResult]int{}
	for _, g := range groups {
		operations += g.recorded
		count[check(g, *timeout, *states, out)]++
	}
	bad, unknown := count[porcupine.Illegal], count[porcupine.Unknown]
	fmt.Fprintf(out, "total: %d groups, %d operations, %.3f s: %d linearizable, %d not linearizable, %d undecided\n",
		len(groups), operations, time.Since(begin).Seconds(), count[porcupine.Ok], bad, unknown)
	switch {
	case bad > 0:
		return exitNotLinearizable
	case unknown > 0:
		fmt.Fprintf(problems, "histories: %d groups could not be decided; that is not a pass\n", unknown)
		return exitCannotSay
	}
	return exitLinearizable
}

// check checks one group and reports on it.
func check(g *group, timeout time.Duration, states int64, out io.Writer) porcupine.CheckResult {
	s := &search{group: g}
	s.states.Store(states)
	begin := time.Now()
	result := porcupine.CheckOperationsTimeout(s.model(), g.history(), timeout)
	reason := fmt.Sprintf("not decided within %v", timeout)
	if s.exhausted.Load() && result != porcupine.Ok {
		result, reason = porcupine.Unknown, fmt.Sprintf("not decided with %d states", states)
	}
	verdict := map[porcupine.CheckResult]string{porcupine.Ok: "linearizable", porcupine.Illegal: "NOT LINEARIZABLE", porcupine.Unknown: "UNDECIDED, " + reason}[result]
	fmt.Fprintf(out, "%s: %s, %d operations, %.3f s\n", g.label, verdict, g.recorded, time.Since(begin).Seconds())
	if result != porcupine.Ok {
		s.explain(out)
	}
	return result
}

// history returns the operations as the checker takes them.
func (g *group) history() []porcupine.Operation {
	var history []porcupine.Operation
	for _, op := range g.operations {
		history = append(history, porcupine.Operation{Input: op, Call: op.call, Return: op.end})
	}
	slices.SortStableFunc(history, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	return history
}

// explain shows where the longest order of operations ends, and why nothing can come next.
func (s *search) explain(out io.Writer) {
	end := s.furthest.Load()
	if end == nil {
		return
	}
	var last []*operation
	done := map[*operation]bool{}
	for n := end; n.before != nil; n = n.before {
		done[n.op] = true
		if len(last) < shown {
			last = append(last, n.op)
		}
	}
	fmt.Fprintf(out, "  The longest order that explains what was recorded has %d of %d steps. It ends with:\n", end.position, len(s.operations))
	slices.Reverse(last)
	for _, op := range last {
		fmt.Fprintf(out, "    %s\n", op)
	}
	w := end.worlds[0]
	var balances []string
	for i, b := range w.balances {
		balances = append(balances, fmt.Sprintf("%s has %d posted and %d held", s.accounts[i], b.posted, b.held))
	}
	fmt.Fprintf(out, "  Then %s", strings.Join(balances, ", "))
	if others := len(end.worlds) - 1; others > 0 {
		fmt.Fprintf(out, ", or it is one of %d other possibilities, as other holds have expired", others)
	}
	fmt.Fprintln(out, ". What could come next, and why it cannot:")
	// Whatever is called after one of the remaining operations has returned cannot come before that one.
	var rest []*operation
	limit := int64(math.MaxInt64)
	for _, op := range s.operations {
		if !done[op] {
			rest, limit = append(rest, op), min(limit, op.end)
		}
	}
	for _, op := range rest {
		if op.call <= limit {
			reason := "it can, and what follows cannot"
			if _, r := s.apply(w, op); r != nil {
				reason = r.String()
			}
			fmt.Fprintf(out, "    %s\n      %s\n", op, reason)
		}
	}
}

// String returns the line of the file that an operation comes from.
func (op *operation) String() string {
	note := map[string]string{mayExpire: " (from its call on the hold may expire)", mustExpired: " (by its return the hold must have expired)"}[op.kind]
	return fmt.Sprintf("line %d%s: %s", op.line, note, op.text)
}
