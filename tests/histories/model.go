package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/anishathalye/porcupine"
)

// Where a transfer, a hold or a reversal stands, in the words of the history.
const (
	notFound   = "NOT_FOUND"
	authorized = "AUTHORIZED"
	completed  = "COMPLETED"
	rejected   = "REJECTED"
	voided     = "VOIDED"
	expired    = "EXPIRED"
)

// Outcomes that leave a transfer, a hold or a reversal as it was.
const (
	holdResolved    = "HOLD_RESOLVED"
	holdExpired     = "HOLD_EXPIRED"
	alreadyReversed = "ALREADY_REVERSED"
)

// The two moments that stand for an internal event "expire" of the history: from the first on the hold may expire, by the second it must have.
// Both are moments without width, so a wide interval costs the search nothing. See explore for what happens between them.
const (
	mayExpire   = "mayExpire"
	mustExpired = "mustExpired"
)

// balance is what an account has: the sum of its postings, and how much of it is held.
type balance struct{ posted, held int64 }

// entity is what the model knows of a transfer, a hold or a reversal while some operation of the history still has to name it.
type entity struct {
	id       int    // Its number within the group.
	named    int    // How many operations have named it so far.
	status   string // Where it stands.
	reversed bool   // It has a completed reversal.
	due      bool   // It is a hold that may expire at any moment.
	captured int64  // What a partial capture took of a hold; 0 for all of it.
}

// world is a state of the ledger. It is never changed in place: worlds share the slices in which they do not differ.
type world struct {
	balances []balance
	entities []entity // Sorted by id. What nobody names any more is left out, so that there are always few.
}

func (w world) equal(other world) bool {
	return slices.Equal(w.balances, other.balances) && slices.Equal(w.entities, other.entities)
}

func (w world) position(id int) (int, bool) {
	return slices.BinarySearchFunc(w.entities, id, func(e entity, id int) int { return e.id - id })
}

// entity returns what is known of an id.
func (w world) entity(id int) entity {
	if at, found := w.position(id); found {
		return w.entities[at]
	}
	return entity{id: id, status: notFound}
}

// name returns the world after one more operation has named an entity and left it like this.
func (g *group) name(w world, e entity) world {
	e.named++
	at, found := w.position(e.id)
	keep := e.named < g.names[e.id]
	if !found && !keep {
		return w
	}
	entities := make([]entity, 0, len(w.entities)+1)
	entities = append(entities, w.entities[:at]...)
	if keep {
		entities = append(entities, e)
	}
	if found {
		at++
	}
	w.entities = append(entities, w.entities[at:]...)
	return w
}

// refusal says why an operation cannot have happened in a world.
type refusal struct {
	format string
	values []any
	// The account on which less held money might have allowed the operation, or -1.
	account int
}

func (r *refusal) String() string { return fmt.Sprintf(r.format, r.values...) }

func refuse(format string, values ...any) *refusal { return &refusal{format, values, -1} }

// move takes the money of legs from their accounts, one leg after the other: a hold sets it aside, everything else brings it to the other
// account at once. It returns the balances after that, the postings, and the first leg that lacks funds, or -1.
func (g *group) move(before []balance, legs []leg, hold bool) ([]balance, []posting, int) {
	after, made := slices.Clone(before), make([]posting, 0, 2*len(legs))
	for i, l := range legs {
		from, to := &after[l.from], &after[l.to]
		if from.posted-from.held+g.limits[l.from] < l.amount {
			return nil, nil, i
		}
		if hold {
			from.held += l.amount
			continue
		}
		from.posted -= l.amount
		to.posted += l.amount
		made = append(made, posting{l.from, -l.amount, from.posted}, posting{l.to, l.amount, to.posted})
	}
	return after, made, -1
}

// release gives back what a hold has set aside.
func release(before []balance, legs []leg) []balance {
	after := slices.Clone(before)
	for _, l := range legs {
		after[l.from].held -= l.amount
	}
	return after
}

// decide returns the balances after an operation that moves money along legs, or why its recorded outcome is impossible.
func (g *group) decide(before []balance, op *operation, legs []leg) ([]balance, *refusal) {
	after, made, failed := g.move(before, legs, op.kind == "hold")
	switch {
	case op.result != rejected && failed < 0:
		return after, g.compare(op.postings, made)
	case op.result != rejected:
		r := refuse("leg %d lacks funds: %q has less than %d available", failed, g.accounts[legs[failed].from], legs[failed].amount)
		r.account = legs[failed].from
		return nil, r
	case failed < 0:
		return nil, refuse("it is recorded as REJECTED, and every leg has its funds")
	case failed != op.RejectedLeg:
		r := refuse("leg %d is recorded as the first that lacks funds, and that is leg %d", op.RejectedLeg, failed)
		if failed < op.RejectedLeg {
			r.account = legs[failed].from
		}
		return nil, r
	}
	return before, nil
}

// compare checks the postings that the caller saw, which are all those of the accounts that it may see, against those of the model.
func (g *group) compare(seen, made []posting) *refusal {
	if len(seen) == 0 {
		return nil
	}
	next := 0
	for _, m := range made {
		if !slices.ContainsFunc(seen, func(s posting) bool { return s.account == m.account }) {
			continue
		}
		if next == len(seen) || seen[next] != m {
			return refuse("posting %d of those recorded should be %d on %q with balanceAfter %d", next, m.amount, g.accounts[m.account], m.balanceAfter)
		}
		next++
	}
	if next < len(seen) {
		return refuse("posting %d of those recorded is one too many", next)
	}
	return nil
}

// apply returns the world after an operation with its recorded outcome, or why that outcome is impossible in this world.
func (g *group) apply(w world, op *operation) (world, *refusal) {
	if op.kind == "read_account" {
		b, r := w.balances[op.account], (*refusal)(nil)
		if b.posted != op.Posted {
			r = refuse("posted of %q is %d", op.Account, b.posted)
		} else if b.held != op.Held {
			r = refuse("held of %q is %d", op.Account, b.held)
			if b.held > op.Held {
				r.account = op.account
			}
		}
		return w, r
	}
	e, r := w.entity(op.id), (*refusal)(nil)
	sawExpired := op.result == expired || op.result == holdExpired
	if sawExpired && e.due && e.status == authorized {
		e.status, w.balances = expired, release(w.balances, g.legs[op.id])
	}
	switch {
	case op.kind == "transfer" || op.kind == "hold":
		w.balances, r = g.decide(w.balances, op, op.legs)
		e.status = op.result
	case op.kind == "reverse":
		original := w.entity(op.of)
		if original.status != completed || original.reversed != (op.result == alreadyReversed) {
			return w, refuse("%q is %s, and that it is reversed already is %t", op.Of, original.status, original.reversed)
		}
		if op.result != alreadyReversed {
			w.balances, r = g.decide(w.balances, op, withAmount(op.legs, original.captured))
			e.status, original.reversed = op.result, op.result == completed
		}
		w = g.name(w, original)
	case op.kind == mayExpire:
		e.due = true
	case op.kind == "read_transaction" || sawExpired:
		needed := op.result
		if sawExpired {
			needed = expired
		}
		if e.status != needed {
			r = refuse("%q is %s", op.ID, e.status)
		}
	case op.result == holdResolved:
		if e.status != completed && e.status != voided {
			r = refuse("%q is %s", op.ID, e.status)
		}
	case e.status != authorized:
		r = refuse("%q is %s", op.ID, e.status)
	case op.kind == "void":
		e.status, w.balances = voided, release(w.balances, g.legs[op.id])
	case op.kind == "capture":
		legs := g.legs[op.id]
		if op.Amount != 0 && (len(legs) > 1 || op.Amount > legs[0].amount) {
			return w, refuse("a part of %q cannot be captured unless it has one leg, and never more than that", op.ID)
		}
		w.balances, r = g.decide(release(w.balances, legs), op, withAmount(legs, op.Amount))
		e.status, e.captured = completed, op.Amount
	}
	return g.name(w, e), r
}

// withAmount returns legs as they are for the amount 0, and otherwise the only leg with this amount.
func withAmount(legs []leg, amount int64) []leg {
	if amount == 0 {
		return legs
	}
	return []leg{{legs[0].from, legs[0].to, amount}}
}

// explore adds to found every world that an operation may lead to, and returns the refusal if this world as it is refuses the operation.
//
// A hold that may expire does so as late as possible: only when an operation needs that. Nothing is lost, because it could have expired
// just as well at that moment. Where the operation lacks money that holds of an account keep, each choice of those that are due is tried;
// account is the one whose holds were chosen last, and first the entity after them, so that no choice is tried in two orders.
func (g *group) explore(ctx context.Context, w world, op *operation, account, first int, found *[]world) *refusal {
	after, r := g.apply(w, op)
	if r == nil {
		if !slices.ContainsFunc(*found, after.equal) {
			*found = append(*found, after)
		}
		return nil
	}
	if r.account < 0 {
		return r
	}
	if r.account != account {
		first = 0
	}
	for i := first; i < len(w.entities) && ctx.Err() == nil; i++ {
		e := w.entities[i]
		if !e.due || e.status != authorized || !slices.ContainsFunc(g.legs[e.id], func(l leg) bool { return l.from == r.account }) {
			continue
		}
		without := world{release(w.balances, g.legs[e.id]), slices.Clone(w.entities)}
		without.entities[i].status = expired
		g.explore(ctx, without, op, r.account, i+1, found)
	}
	return r
}

// node is a step of an order of operations: where it led, and the steps before it.
type node struct {
	worlds   []world // The ledger is in one of these; they differ only in which holds have expired.
	before   *node   // Nil at the beginning.
	op       *operation
	position int
	only     bool // What was tried last from here stands for everything that could be tried.
}

// search looks for an order of a group's operations that explains what was recorded.
type search struct {
	*group
	states    atomic.Int64         // How many more may be kept in memory.
	furthest  atomic.Pointer[node] // The end of the longest order found.
	exhausted atomic.Bool          // There were too many states: the result means nothing.
}

// model describes the ledger to the checker.
//
// What only looks, and is explained right now, may as well happen right now: whatever explains the history with that operation later explains
// it with the operation here. The checker goes into depth first, so when it comes back to this node it need not try anything else. A history
// of reads and rejections costs next to nothing by that.
func (s *search) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any {
			start := &node{worlds: []world{{balances: s.initial}}}
			s.furthest.Store(start)
			return start
		},
		StepContext: func(ctx context.Context, state, input, _ any) (bool, any) {
			before, op := state.(*node), input.(*operation)
			if before.only || s.exhausted.Load() {
				return false, nil
			}
			var found []world
			for _, w := range before.worlds {
				s.explore(ctx, w, op, -1, 0, &found)
			}
			if len(found) == 0 {
				return false, nil
			}
			if s.states.Add(-int64(len(found))) < 0 {
				s.exhausted.Store(true)
			}
			before.only = s.onlyLooks(op) && slices.EqualFunc(before.worlds, found, func(a, b world) bool { return slices.Equal(a.balances, b.balances) })
			after := &node{worlds: found, before: before, op: op, position: before.position + 1}
			if after.position > s.furthest.Load().position {
				s.furthest.Store(after)
			}
			return true, after
		},
		Equal: func(a, b any) bool { return slices.EqualFunc(a.(*node).worlds, b.(*node).worlds, world.equal) },
	}
}

// onlyLooks tells whether an operation changes nothing that another one could notice, if no hold expires for it.
func (g *group) onlyLooks(op *operation) bool {
	switch op.result {
	case rejected:
		return op.kind == "read_transaction" || g.names[op.id] == 1
	case holdResolved, holdExpired, alreadyReversed:
		return true
	}
	return op.kind == "read_account" || op.kind == "read_transaction" || op.kind == mayExpire || op.kind == mustExpired
}
