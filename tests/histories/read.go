package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// record is a line of the file as it stands there.
type record struct {
	Group       string           `json:"group"`
	Init        map[string]int64 `json:"init"`
	Limits      map[string]int64 `json:"limits"`
	Client      int              `json:"client"`
	Call        int64            `json:"call"`
	Return      int64            `json:"return"`
	Kind        string           `json:"kind"`
	ID          string           `json:"id"`
	Of          string           `json:"of"`
	Legs        []recordedLeg    `json:"legs"`
	Amount      int64            `json:"amount"`
	Result      string           `json:"result"`
	RejectedLeg int              `json:"rejectedLeg"`
	Postings    []struct {
		Account      string `json:"account"`
		Amount       int64  `json:"amount"`
		BalanceAfter *int64 `json:"balanceAfter"`
	} `json:"postings"`
	Account string `json:"account"`
	Posted  int64  `json:"posted"`
	Held    int64  `json:"held"`
	State   string `json:"state"`

	line int
	text string
}

type recordedLeg struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Amount int64  `json:"amount"`
}

// shapes says which fields each kind of operation has beside those that all have, and which values its result or state may take.
var shapes = map[string]struct{ fields, outcomes string }{
	"transfer":         {"id legs result", "COMPLETED REJECTED"},
	"hold":             {"id legs result", "AUTHORIZED REJECTED"},
	"capture":          {"id amount result", "COMPLETED HOLD_RESOLVED HOLD_EXPIRED"},
	"void":             {"id result", "VOIDED HOLD_RESOLVED HOLD_EXPIRED"},
	"expire":           {"id", ""},
	"reverse":          {"of id result", "COMPLETED REJECTED ALREADY_REVERSED"},
	"read_account":     {"account posted held", ""},
	"read_transaction": {"id state", "COMPLETED REJECTED AUTHORIZED VOIDED EXPIRED NOT_FOUND"},
}

// leg is money that moves between two accounts, which are given by their numbers within the group.
type leg struct {
	from, to int
	amount   int64
}

// posting is a line of an account's statement.
type posting struct {
	account              int
	amount, balanceAfter int64
}

// operation is a record with numbers in the place of names, for the model.
type operation struct {
	*record
	kind      string // As recorded, except that an expire has become mayExpire and mustExpired.
	call, end int64  // It happens at one moment between these, or at one of the two.
	id, of    int
	account   int
	result    string // The result, or the state of a transaction that was read.
	legs      []leg  // Of a transfer or a hold, and of a reversal in its own order.
	postings  []posting
}

// group is one history, which shares no account with any other.
type group struct {
	label      string
	recorded   int // How many operations there were in the file.
	accounts   []string
	initial    []balance
	limits     []int64
	ids        []string
	legs       [][]leg // Of each id: those of a transfer or a hold.
	names      []int   // Of each id: how many operations name it.
	operations []*operation
}

// read returns the groups of a file in their order, or the first thing in it that is not as it should be.
func read(file io.Reader) ([]*group, error) {
	var labels []string
	begins, records := map[string]*record{}, map[string][]*record{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<20)
	number := 0
	for lines.Scan() {
		number++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		r, err := parse(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		r.line, r.text = number, lines.Text()
		if !slices.Contains(labels, r.Group) {
			labels = append(labels, r.Group)
		}
		if r.Init == nil {
			records[r.Group] = append(records[r.Group], r)
		} else if begins[r.Group] != nil {
			return nil, fmt.Errorf("line %d: group %q has begun on line %d", number, r.Group, begins[r.Group].line)
		} else {
			begins[r.Group] = r
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("after line %d: %w", number, err)
	}
	if len(labels) == 0 {
		return nil, errors.New("there is no group in it")
	}
	var groups []*group
	for _, label := range labels {
		if begins[label] == nil {
			return nil, fmt.Errorf("group %q has no line with init", label)
		}
		g, err := newGroup(begins[label], records[label])
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// parse reads one line, which must have exactly the fields of its kind.
func parse(line []byte) (*record, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		return nil, err
	}
	decoder, r := json.NewDecoder(bytes.NewReader(line)), &record{}
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(r); err != nil {
		return nil, err
	}
	var required, optional []string
	shape, known := shapes[r.Kind]
	switch {
	case fields["init"] != nil:
		required, optional = []string{"group", "init"}, []string{"limits"}
	case !known:
		return nil, fmt.Errorf("unknown kind %q", r.Kind)
	default:
		required = append([]string{"group", "client", "call", "return", "kind"}, strings.Fields(shape.fields)...)
		if r.Result == rejected {
			required = append(required, "rejectedLeg")
		}
		if r.Result == completed {
			optional = append(optional, "postings")
		}
		if r.Kind == "expire" {
			required, optional = slices.DeleteFunc(required, func(name string) bool { return name == "client" }), []string{"client"}
		}
		if shape.outcomes != "" && !slices.Contains(strings.Fields(shape.outcomes), r.Result+r.State) {
			return nil, fmt.Errorf("%s with the unknown result or state %q", r.Kind, r.Result+r.State)
		}
	}
	for _, name := range required {
		if value, found := fields[name]; !found || string(value) == "null" || string(value) == `""` {
			return nil, fmt.Errorf("field %q is missing", name)
		}
	}
	for name := range fields {
		if !slices.Contains(required, name) && !slices.Contains(optional, name) {
			return nil, fmt.Errorf("field %q does not belong here", name)
		}
	}
	if r.Return < r.Call {
		return nil, errors.New("it returns before its call")
	}
	if r.Amount < 0 {
		return nil, errors.New("the amount is below zero")
	}
	return r, nil
}

// newGroup puts numbers in the place of names, and checks that every name is one that the group has.
func newGroup(begin *record, records []*record) (*group, error) {
	g := &group{label: begin.Group, recorded: len(records), accounts: slices.Sorted(maps.Keys(begin.Init))}
	accounts := map[string]int{}
	for i, name := range g.accounts {
		accounts[name] = i
		g.initial = append(g.initial, balance{posted: begin.Init[name]})
		g.limits = append(g.limits, begin.Limits[name])
	}
	for name := range begin.Limits {
		if _, found := accounts[name]; !found {
			return nil, fmt.Errorf("line %d: a limit of the unknown account %q", begin.line, name)
		}
	}
	// Ids get numbers by what creates them, before anything refers to them.
	numbers, creators, expires := map[string]int{}, map[string]*record{}, map[string]bool{}
	for _, r := range records {
		if r.Kind == "transfer" || r.Kind == "hold" || r.Kind == "reverse" {
			if creators[r.ID] != nil {
				return nil, fmt.Errorf("line %d: %q has been created on line %d", r.line, r.ID, creators[r.ID].line)
			}
			creators[r.ID] = r
		}
		if _, found := numbers[r.ID]; !found && r.ID != "" {
			numbers[r.ID] = len(g.ids)
			g.ids = append(g.ids, r.ID)
		}
	}
	g.legs, g.names = make([][]leg, len(g.ids)), make([]int, len(g.ids))
	for id, r := range creators {
		for _, l := range r.Legs {
			from, found := accounts[l.From]
			to, alsoFound := accounts[l.To]
			if !found || !alsoFound || from == to || l.Amount <= 0 {
				return nil, fmt.Errorf("line %d: a leg must move more than zero between two accounts of the group", r.line)
			}
			g.legs[numbers[id]] = append(g.legs[numbers[id]], leg{from, to, l.Amount})
		}
		if len(r.Legs) == 0 && r.Kind != "reverse" {
			return nil, fmt.Errorf("line %d: there are no legs", r.line)
		}
	}
	for _, r := range records {
		op := &operation{record: r, kind: r.Kind, call: r.Call, end: r.Return, result: r.Result + r.State}
		named := map[string]int{r.ID: 1}
		switch r.Kind {
		case "read_account":
			account, found := accounts[r.Account]
			if !found {
				return nil, fmt.Errorf("line %d: unknown account %q", r.line, r.Account)
			}
			op.account, named = account, nil
		case "capture", "void", "expire":
			if creators[r.ID] == nil || creators[r.ID].Kind != "hold" {
				return nil, fmt.Errorf("line %d: %q is not a hold of the group", r.line, r.ID)
			}
			if r.Kind == "expire" {
				if expires[r.ID] {
					return nil, fmt.Errorf("line %d: %q expires twice", r.line, r.ID)
				}
				expires[r.ID], named[r.ID] = true, 2
			}
		case "reverse":
			if creators[r.Of] == nil || creators[r.Of].Kind == "reverse" {
				return nil, fmt.Errorf("line %d: %q is neither a transfer nor a hold of the group", r.line, r.Of)
			}
			op.of, named[r.Of] = numbers[r.Of], 1
			for _, l := range g.legs[op.of] {
				op.legs = append([]leg{{l.to, l.from, l.amount}}, op.legs...)
			}
		case "transfer", "hold":
			op.legs = g.legs[numbers[r.ID]]
		}
		for id, times := range named {
			g.names[numbers[id]] += times
		}
		op.id = numbers[r.ID]
		if r.Result == rejected && (r.RejectedLeg < 0 || r.RejectedLeg >= len(op.legs)) {
			return nil, fmt.Errorf("line %d: there is no leg %d", r.line, r.RejectedLeg)
		}
		for _, p := range r.Postings {
			account, found := accounts[p.Account]
			if !found || p.BalanceAfter == nil {
				return nil, fmt.Errorf("line %d: a posting must have an account of the group and a balanceAfter", r.line)
			}
			op.postings = append(op.postings, posting{account, p.Amount, *p.BalanceAfter})
		}
		if r.Kind == "expire" {
			first, last := *op, *op
			first.kind, first.end = mayExpire, op.call
			last.kind, last.call, last.result = mustExpired, op.end, expired
			g.operations = append(g.operations, &first, &last)
		} else {
			g.operations = append(g.operations, op)
		}
	}
	return g, nil
}
