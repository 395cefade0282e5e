package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "begins the random choices of the tests")

// checked writes a history to a file, runs the command on it, and returns its exit code and everything that it wrote.
func checked(t testing.TB, history string, flags ...string) (int, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history.jsonl")
	if err := os.WriteFile(path, []byte(history), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code := run(append(flags, path), &out, &out)
	return code, out.String()
}

// written makes a history of one group out of short lines, such as `0 1 transfer id=t1 legs=a>b:5 result=COMPLETED postings=a:-5:95`:
// the call, the return, the kind, and the fields. Accounts have names of one letter.
func written(t testing.TB, begin string, lines ...string) string {
	t.Helper()
	var history strings.Builder
	fmt.Fprintf(&history, `{"group":"g",%s}`+"\n", begin)
	for _, line := range lines {
		words := strings.Fields(line)
		fmt.Fprintf(&history, `{"group":"g","client":0,"call":%s,"return":%s,"kind":%q`, words[0], words[1], words[2])
		for _, word := range words[3:] {
			name, value, _ := strings.Cut(word, "=")
			var items []string
			switch {
			case name == "legs":
				for _, item := range strings.Split(value, ",") {
					part := regexp.MustCompile(`^(\w)>(\w):(\d+)$`).FindStringSubmatch(item)
					items = append(items, fmt.Sprintf(`{"from":%q,"to":%q,"amount":%s}`, part[1], part[2], part[3]))
				}
				value = "[" + strings.Join(items, ",") + "]"
			case name == "postings":
				for _, item := range strings.Split(value, ",") {
					part := strings.Split(item, ":")
					items = append(items, fmt.Sprintf(`{"account":%q,"amount":%s,"balanceAfter":%s}`, part[0], part[1], part[2]))
				}
				value = "[" + strings.Join(items, ",") + "]"
			case !regexp.MustCompile(`^-?\d+$`).MatchString(value):
				value = fmt.Sprintf("%q", value)
			}
			fmt.Fprintf(&history, ",%q:%s", name, value)
		}
		history.WriteString("}\n")
	}
	return history.String()
}

// accounts begins a history.
const accounts = `"init":{"a":100,"b":100,"c":0}`

// good are histories that a ledger can have.
var good = map[string][]string{
	"nothing happens": nil,
	"a transfer and reads around it": {
		"0 1 read_account account=a posted=100 held=0", "2 5 transfer id=t1 legs=a>b:30 result=COMPLETED postings=a:-30:70",
		"3 4 read_account account=b posted=130 held=0", "3 4 read_account account=a posted=70 held=0",
		"6 7 read_transaction id=t1 state=COMPLETED",
	},
	"what overlaps may come in any order": {
		"0 9 transfer id=t1 legs=a>b:100 result=COMPLETED", "1 8 transfer id=t2 legs=b>c:200 result=COMPLETED",
		"2 7 read_account account=c posted=0 held=0", "8 8 read_account account=c posted=200 held=0",
	},
	"an interval includes its ends": {"0 5 transfer id=t1 legs=a>b:1 result=COMPLETED", "5 6 read_account account=a posted=100 held=0"},
	"a later leg uses what an earlier one brings": {
		"0 1 transfer id=t1 legs=a>c:50,c>b:50 result=COMPLETED postings=c:50:50,c:-50:0",
		"2 3 transfer id=t2 legs=c>b:50,a>c:50 result=REJECTED rejectedLeg=0",
		"4 5 transfer id=t3 legs=a>c:50,c>b:51 result=REJECTED rejectedLeg=1", "6 7 read_account account=a posted=50 held=0",
	},
	"a hold does not use what its legs bring": {
		"0 1 hold id=h1 legs=a>c:50,c>b:50 result=REJECTED rejectedLeg=1", "2 3 hold id=h2 legs=a>b:60,a>c:40 result=AUTHORIZED",
		"4 5 hold id=h3 legs=a>b:1 result=REJECTED rejectedLeg=0", "6 7 transfer id=t1 legs=a>b:1 result=REJECTED rejectedLeg=0",
		"8 9 read_account account=a posted=100 held=100", "10 11 capture id=h2 amount=0 result=COMPLETED postings=a:-60:40,a:-40:0",
		"12 13 read_account account=a posted=0 held=0", "14 15 read_transaction id=h2 state=COMPLETED",
		"16 17 capture id=h2 amount=0 result=HOLD_RESOLVED", "18 19 void id=h2 result=HOLD_RESOLVED",
	},
	"a part is captured, and just that is reversed": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 capture id=h1 amount=20 result=COMPLETED postings=a:-20:80,c:20:20",
		"4 5 reverse of=h1 id=r1 result=COMPLETED", "6 7 read_account account=a posted=100 held=0",
		"8 9 reverse of=h1 id=r2 result=ALREADY_REVERSED", "10 11 read_transaction id=r1 state=COMPLETED", "10 11 read_transaction id=r2 state=NOT_FOUND",
	},
	"a void gives back": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 void id=h1 result=VOIDED", "4 5 read_account account=a posted=100 held=0",
		"6 7 capture id=h1 amount=0 result=HOLD_RESOLVED", "8 9 read_transaction id=h1 state=VOIDED",
	},
	"a rejected reversal may be tried again, and its legs count from the last": {
		"0 1 transfer id=t1 legs=a>b:5,a>c:10 result=COMPLETED", "2 3 transfer id=t2 legs=c>b:10 result=COMPLETED",
		"4 5 reverse of=t1 id=r1 result=REJECTED rejectedLeg=0", "6 7 transfer id=t3 legs=b>c:10 result=COMPLETED",
		"8 9 reverse of=t1 id=r2 result=COMPLETED", "10 11 read_transaction id=r1 state=REJECTED", "10 11 read_account account=a posted=100 held=0",
	},
	"holds expire between the moments that are known": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "0 1 hold id=h2 legs=a>c:40 result=AUTHORIZED",
		"0 50 expire id=h1", "0 50 expire id=h2",
		"2 3 read_account account=a posted=100 held=100", "4 5 transfer id=t1 legs=a>b:50 result=COMPLETED", "6 7 read_account account=a posted=50 held=40",
		"8 9 capture id=h1 amount=0 result=HOLD_EXPIRED", "10 11 read_transaction id=h2 state=AUTHORIZED",
		"50 51 read_transaction id=h2 state=EXPIRED", "52 53 void id=h2 result=HOLD_EXPIRED", "54 55 read_account account=a posted=50 held=0",
	},
	"an expiry moves the leg that is rejected": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "0 9 expire id=h1", "2 3 transfer id=t1 legs=a>c:100,a>c:1 result=REJECTED rejectedLeg=1",
	},
	"the second that was called comes first": {
		"0 9 transfer id=t1 legs=a>b:30 result=COMPLETED", "0 9 transfer id=t2 legs=a>b:20 result=COMPLETED", "1 8 read_account account=a posted=80 held=0",
	},
	"a rejection that was not there before": {
		"0 9 transfer id=t1 legs=a>b:101 result=REJECTED rejectedLeg=0", "1 8 read_transaction id=t1 state=NOT_FOUND",
	},
	"a read that an expiry would explain, and that comes later": {
		"0 1 hold id=h1 legs=a>c:30 result=AUTHORIZED", "0 1 hold id=h2 legs=a>c:30 result=AUTHORIZED", "0 50 expire id=h1",
		"2 9 read_account account=a posted=100 held=30", "3 8 void id=h2 result=VOIDED", "10 11 read_transaction id=h1 state=AUTHORIZED",
	},
	"holds of several accounts expire for one transfer": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "0 1 hold id=h2 legs=b>c:60 result=AUTHORIZED", "0 50 expire id=h1", "0 50 expire id=h2",
		"2 3 transfer id=t1 legs=b>c:100,a>c:100 result=COMPLETED",
	},
	"nothing is found before it is there": {"0 1 read_transaction id=t1 state=NOT_FOUND", "0 5 transfer id=t1 legs=a>b:1 result=COMPLETED", "6 7 read_transaction id=other state=NOT_FOUND"},
}

// bad are histories that no ledger can have.
var bad = map[string][]string{
	"a lost update": {
		"0 5 transfer id=t1 legs=a>b:30 result=COMPLETED", "0 5 transfer id=t2 legs=a>b:20 result=COMPLETED", "6 7 read_account account=a posted=80 held=0",
	},
	"a stale read after a newer one": {
		"0 9 transfer id=t1 legs=a>b:30 result=COMPLETED", "1 2 read_account account=a posted=70 held=0", "3 4 read_account account=a posted=100 held=0",
	},
	"accounts that change one after the other": {
		"0 9 transfer id=t1 legs=a>b:30 result=COMPLETED", "1 2 read_account account=a posted=70 held=0", "3 4 read_account account=b posted=100 held=0",
	},
	"money out of nothing":           {"0 1 read_account account=c posted=1 held=0"},
	"more than there is":             {"0 1 transfer id=t1 legs=a>b:101 result=COMPLETED"},
	"a rejection in spite of funds":  {"0 1 transfer id=t1 legs=a>b:100 result=REJECTED rejectedLeg=0"},
	"a rejected leg wrongly counted": {"0 1 transfer id=t1 legs=a>b:60,a>b:60,a>b:60 result=REJECTED rejectedLeg=2"},
	"a rejected leg counted too low": {"0 1 hold id=h1 legs=a>b:60,a>b:60 result=REJECTED rejectedLeg=0"},
	"half a transfer":                {"0 1 transfer id=t1 legs=a>b:60,a>b:60 result=REJECTED rejectedLeg=1", "2 3 read_account account=a posted=40 held=0"},
	"a double capture": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 5 capture id=h1 amount=0 result=COMPLETED", "3 4 capture id=h1 amount=0 result=COMPLETED",
	},
	"a capture after a void": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 void id=h1 result=VOIDED", "4 5 capture id=h1 amount=0 result=COMPLETED",
	},
	"a capture of an expired hold": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 9 expire id=h1", "3 4 read_transaction id=h1 state=EXPIRED", "5 6 capture id=h1 amount=0 result=COMPLETED",
	},
	"an expiry too early": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "5 9 expire id=h1", "2 3 read_account account=a posted=100 held=0",
	},
	"an expiry too late": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 expire id=h1", "4 5 read_account account=a posted=100 held=60",
	},
	"an expiry that comes back": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "0 9 expire id=h1", "2 3 read_account account=a posted=100 held=0", "4 5 read_account account=a posted=100 held=60",
	},
	"an expiry that is seen too early": {
		"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "5 9 expire id=h1", "2 3 read_transaction id=h1 state=EXPIRED",
	},
	"a hold that is resolved by nobody": {"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 void id=h1 result=HOLD_RESOLVED"},
	"more captured than held":           {"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 capture id=h1 amount=61 result=COMPLETED"},
	"a part of two legs":                {"0 1 hold id=h1 legs=a>c:60,b>c:10 result=AUTHORIZED", "2 3 capture id=h1 amount=10 result=COMPLETED"},
	"held money is spent":               {"0 1 hold id=h1 legs=a>c:60 result=AUTHORIZED", "2 3 transfer id=t1 legs=a>b:41 result=COMPLETED"},
	"a wrong balanceAfter":              {"0 1 transfer id=t1 legs=a>b:30 result=COMPLETED postings=a:-30:71"},
	"a posting that is missing": {
		"0 1 transfer id=t1 legs=a>b:30,a>c:10 result=COMPLETED postings=a:-30:70",
	},
	"a posting too many": {"0 1 transfer id=t1 legs=a>b:30 result=COMPLETED postings=a:-30:70,a:-10:60"},
	"a reversal twice": {
		"0 1 transfer id=t1 legs=a>b:30 result=COMPLETED", "2 5 reverse of=t1 id=r1 result=COMPLETED", "3 4 reverse of=t1 id=r2 result=COMPLETED",
	},
	"a reversal of what was rejected": {
		"0 1 transfer id=t1 legs=c>a:1 result=REJECTED rejectedLeg=0", "2 3 reverse of=t1 id=r1 result=COMPLETED",
	},
	"a reversal refused as the second before there is one": {
		"0 1 transfer id=t1 legs=a>b:30 result=COMPLETED", "2 3 reverse of=t1 id=r1 result=ALREADY_REVERSED",
	},
	"what was seen is not found": {"0 9 transfer id=t1 legs=a>b:1 result=COMPLETED", "1 2 read_transaction id=t1 state=COMPLETED", "3 4 read_transaction id=t1 state=NOT_FOUND"},
}

func TestWhatALedgerCanDoPasses(t *testing.T) {
	for name, lines := range good {
		if code, out := checked(t, written(t, accounts, lines...)); code != exitLinearizable {
			t.Errorf("%s: %d\n%s", name, code, out)
		}
	}
	limited := accounts + `,"limits":{"a":50}`
	if code, out := checked(t, written(t, limited, "0 1 transfer id=t1 legs=a>b:150 result=COMPLETED", "2 3 transfer id=t2 legs=a>b:1 result=REJECTED rejectedLeg=0")); code != exitLinearizable {
		t.Errorf("a credit limit: %d\n%s", code, out)
	}
}

func TestWhatNoLedgerCanDoIsRefused(t *testing.T) {
	for name, lines := range bad {
		code, out := checked(t, written(t, accounts, lines...))
		if code != exitNotLinearizable || !strings.Contains(out, "g: NOT LINEARIZABLE") || !strings.Contains(out, "why it cannot:\n    line ") {
			t.Errorf("%s: %d\n%s", name, code, out)
		}
	}
}

func TestOneBadGroupAmongGoodOnesIsNamed(t *testing.T) {
	fine := written(t, accounts, good["a void gives back"]...)
	lost := strings.ReplaceAll(written(t, accounts, bad["a lost update"]...), `"g"`, `"lost"`)
	code, out := checked(t, fine+lost)
	if code != exitNotLinearizable || !strings.Contains(out, "g: linearizable, 5 operations") || !strings.Contains(out, "lost: NOT LINEARIZABLE, 3 operations") {
		t.Fatalf("%d\n%s", code, out)
	}
	if !strings.Contains(out, `posted of "a" is 50`) || !strings.Contains(out, "total: 2 groups, 8 operations") {
		t.Fatalf("the report does not say why:\n%s", out)
	}
}

func TestWhatDoesNotReadIsNoPass(t *testing.T) {
	begin := `{"group":"g","init":{"a":1,"b":1}}` + "\n"
	operation := func(fields string) string {
		return begin + `{"group":"g","client":0,"call":1,"return":2,` + fields + "}"
	}
	for name, history := range map[string]string{
		"an empty file":                 "",
		"no JSON":                       "hello",
		"two values on a line":          `{"group":"g","init":{"a":1}} {}`,
		"no beginning":                  `{"group":"g","client":0,"call":1,"return":2,"kind":"read_account","account":"a","posted":1,"held":0}`,
		"two beginnings":                begin + begin,
		"an unknown kind":               operation(`"kind":"refund","id":"t1"`),
		"an unknown field":              operation(`"kind":"void","id":"h1","result":"VOIDED","extra":1`),
		"a field of another kind":       operation(`"kind":"read_account","account":"a","posted":1,"held":0,"amount":1`),
		"an unknown field of a leg":     operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"b","amount":1,"fee":1}],"result":"COMPLETED"`),
		"a missing field":               operation(`"kind":"read_account","account":"a","posted":1`),
		"a null":                        operation(`"kind":"read_account","account":"a","posted":1,"held":null`),
		"an unknown account":            operation(`"kind":"read_account","account":"z","posted":1,"held":0`),
		"an unknown result":             operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"b","amount":1}],"result":"PENDING"`),
		"an unknown state":              operation(`"kind":"read_transaction","id":"t1","state":"PENDING"`),
		"a rejection without its leg":   operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"b","amount":1}],"result":"REJECTED"`),
		"a completion with it":          operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"b","amount":1}],"result":"COMPLETED","rejectedLeg":0`),
		"a leg that is not there":       operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"b","amount":1}],"result":"REJECTED","rejectedLeg":1`),
		"a leg to itself":               operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"a","amount":1}],"result":"COMPLETED"`),
		"no legs":                       operation(`"kind":"transfer","id":"t1","legs":[],"result":"COMPLETED"`),
		"a posting without its balance": operation(`"kind":"transfer","id":"t1","legs":[{"from":"a","to":"b","amount":1}],"result":"COMPLETED","postings":[{"account":"a","amount":-1}]`),
		"a capture of nothing":          operation(`"kind":"capture","id":"h1","amount":0,"result":"COMPLETED"`),
		"a reversal of nothing":         operation(`"kind":"reverse","of":"t1","id":"r1","result":"ALREADY_REVERSED"`),
		"one id twice":                  written(t, accounts, "0 1 transfer id=t1 legs=a>b:1 result=COMPLETED", "2 3 hold id=t1 legs=a>b:1 result=AUTHORIZED"),
		"a return before the call":      written(t, accounts, "2 1 read_account account=a posted=100 held=0"),
		"two expiries of one hold":      written(t, accounts, "0 1 hold id=h1 legs=a>b:1 result=AUTHORIZED", "0 9 expire id=h1", "0 9 expire id=h1"),
	} {
		if code, out := checked(t, history); code != exitCannotSay || !strings.HasPrefix(out, "histories: ") {
			t.Errorf("%s: %d\n%s", name, code, out)
		}
	}
	var out bytes.Buffer
	for _, arguments := range [][]string{nil, {"-timeout", "0s", "x"}, {"a", "b"}, {"-unknown"}, {filepath.Join(t.TempDir(), "absent")}} {
		if code := run(arguments, &out, &out); code != exitCannotSay {
			t.Errorf("%q: %d", arguments, code)
		}
	}
}

func TestACheckThatIsGivenUpIsNoPass(t *testing.T) {
	// One read that nothing explains beside transfers that all overlap: every set of them has to be tried.
	lines := []string{"0 100 read_account account=c posted=99 held=0"}
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("0 100 transfer id=t%d legs=a>b:2 result=COMPLETED", i))
	}
	history := written(t, accounts, lines...)
	for _, flags := range [][]string{{"-timeout", "50ms"}, {"-states", "1000"}} {
		if code, out := checked(t, history, flags...); code != exitCannotSay || !strings.Contains(out, "g: UNDECIDED") || !strings.Contains(out, "not a pass") {
			t.Errorf("%v: %d\n%s", flags, code, out)
		}
	}
}

// ledger is a ledger behind one mutex, written apart from the model, that keeps what its clients saw.
type ledger struct {
	sync.Mutex
	begin    time.Time
	posted   map[string]int64
	held     map[string]int64
	limits   map[string]int64
	made     map[string]*transaction
	holds    []*transaction
	ids      []string
	recorded []map[string]any
}

type transaction struct {
	id       string
	state    string
	legs     []recordedLeg
	reversed bool
	call     int64 // Of a hold: when it was asked for.
	closes   int64 // Of a hold: when it may expire.
	doomed   bool  // Of a hold: nobody may capture or void it, so that it expires.
	seen     int64 // Of an expired hold: when somebody had seen that first.
}

func newLedger() *ledger {
	return &ledger{
		begin: time.Now(), posted: map[string]int64{"a": 2000, "b": 1000, "c": 0, "d": 500}, held: map[string]int64{},
		limits: map[string]int64{"c": 300}, made: map[string]*transaction{},
	}
}

func (l *ledger) now() int64 { return time.Since(l.begin).Nanoseconds() }

// move moves money along legs or changes nothing, and returns the postings and the leg that failed, or -1.
func (l *ledger) move(legs []recordedLeg) ([]map[string]any, int) {
	var postings []map[string]any
	for i, leg := range legs {
		if l.posted[leg.From]-l.held[leg.From]+l.limits[leg.From] < leg.Amount {
			for _, undone := range legs[:i] {
				l.posted[undone.From] += undone.Amount
				l.posted[undone.To] -= undone.Amount
			}
			return nil, i
		}
		l.posted[leg.From] -= leg.Amount
		postings = append(postings, map[string]any{"account": leg.From, "amount": -leg.Amount, "balanceAfter": l.posted[leg.From]})
		l.posted[leg.To] += leg.Amount
		postings = append(postings, map[string]any{"account": leg.To, "amount": leg.Amount, "balanceAfter": l.posted[leg.To]})
	}
	return postings, -1
}

// setAside holds the money of legs (sign 1) or gives it back (-1).
func (l *ledger) setAside(legs []recordedLeg, sign int64) {
	for _, leg := range legs {
		l.held[leg.From] += sign * leg.Amount
	}
}

// outcome notes in an operation what became of it: its postings only of one account, as a caller would see them.
func outcome(op map[string]any, made *transaction, postings []map[string]any, failed int, good string) {
	made.state = good
	if failed >= 0 {
		made.state, op["rejectedLeg"] = rejected, failed
	} else if len(postings) > 0 {
		own := postings[0]["account"]
		op["postings"] = slices.DeleteFunc(postings, func(p map[string]any) bool { return p["account"] != own })
	}
	op["result"] = made.state
}

// do does something at random at one moment, between a call and a return that are some time away.
func (l *ledger) do(random *rand.Rand, client int) {
	pause := func() { time.Sleep(time.Duration(random.IntN(200)) * time.Microsecond) }
	op := map[string]any{"group": "g", "client": client, "call": l.now()}
	pause()
	l.Lock()
	defer l.Unlock()
	// What is due expires late and at random, as if a job did it.
	for _, hold := range l.holds {
		if hold.state == authorized && hold.doomed && hold.closes < l.now() && random.IntN(10) == 0 {
			hold.state = expired
			l.setAside(hold.legs, -1)
		}
	}
	var sawExpired *transaction
	id := fmt.Sprintf("t%d", len(l.ids))
	var legs []recordedLeg
	for range 1 + random.IntN(3) {
		way := random.Perm(4)
		legs = append(legs, recordedLeg{"abcd"[way[0] : way[0]+1], "abcd"[way[1] : way[1]+1], 10 * (1 + random.Int64N(40))})
	}
	// One of the latest, so that what happens to them overlaps.
	known := id
	if len(l.ids) > 0 {
		known = l.ids[max(0, len(l.ids)-1-random.IntN(12))]
	}
	made := &transaction{id: id, legs: legs}
	switch choice := random.IntN(12); {
	case choice < 4:
		op["kind"], op["id"], op["legs"] = "transfer", id, legs
		postings, failed := l.move(legs)
		outcome(op, made, postings, failed, completed)
		l.made[id], l.ids = made, append(l.ids, id)
	case choice < 6:
		op["kind"], op["id"], op["legs"] = "hold", id, legs
		failed := -1
		for i, leg := range legs {
			if l.posted[leg.From]-l.held[leg.From]+l.limits[leg.From] < leg.Amount {
				l.setAside(legs[:i], -1)
				failed = i
				break
			}
			l.held[leg.From] += leg.Amount
		}
		outcome(op, made, nil, failed, authorized)
		made.call, made.closes, made.doomed = op["call"].(int64), l.now()+random.Int64N(5_000_000), random.IntN(4) == 0
		l.made[id], l.ids, l.holds = made, append(l.ids, id), append(l.holds, made)
	case choice < 8 && len(l.holds) > 0:
		// The oldest that is open or one of the latest, so that not everything stays held.
		hold := l.holds[max(0, len(l.holds)-1-random.IntN(6))]
		open := slices.IndexFunc(l.holds, func(t *transaction) bool { return t.state == authorized && !t.doomed })
		if open >= 0 && random.IntN(2) == 0 {
			hold = l.holds[open]
		}
		if hold.state == rejected || hold.state == authorized && hold.doomed {
			return
		}
		op["kind"], op["id"] = "void", hold.id
		capture := choice == 6 || random.IntN(2) == 0
		if capture {
			op["kind"], op["amount"] = "capture", 0
		}
		switch {
		case hold.state == expired:
			op["result"], sawExpired = holdExpired, hold
		case hold.state != authorized:
			op["result"] = holdResolved
		case capture:
			l.setAside(hold.legs, -1)
			if len(hold.legs) == 1 && random.IntN(2) == 0 {
				hold.legs = []recordedLeg{{hold.legs[0].From, hold.legs[0].To, max(10, hold.legs[0].Amount/20*10)}}
				op["amount"] = hold.legs[0].Amount
			}
			postings, failed := l.move(hold.legs)
			if failed >= 0 {
				panic("a hold that is not covered")
			}
			outcome(op, hold, postings, -1, completed)
		default:
			l.setAside(hold.legs, -1)
			hold.state, op["result"] = voided, voided
		}
	case choice < 9 && l.made[known] != nil && l.made[known].state == completed && !strings.HasPrefix(known, "r"):
		id = "r" + id
		original := l.made[known]
		op["kind"], op["of"], op["id"] = "reverse", known, id
		if original.reversed {
			op["result"] = alreadyReversed
			l.made[id], l.ids = &transaction{id: id, state: notFound}, append(l.ids, id)
			break
		}
		made.legs = nil
		for i := len(original.legs) - 1; i >= 0; i-- {
			made.legs = append(made.legs, recordedLeg{original.legs[i].To, original.legs[i].From, original.legs[i].Amount})
		}
		postings, failed := l.move(made.legs)
		outcome(op, made, postings, failed, completed)
		original.reversed = failed < 0
		l.made[id], l.ids = made, append(l.ids, id)
	case choice < 10:
		op["kind"], op["id"], op["state"] = "read_transaction", known, notFound
		if read := l.made[known]; read != nil {
			op["state"] = read.state
			if read.state == expired {
				sawExpired = read
			}
		}
	default:
		account := legs[0].From
		op["kind"], op["account"], op["posted"], op["held"] = "read_account", account, l.posted[account], l.held[account]
	}
	l.Unlock()
	pause()
	end := l.now()
	l.Lock()
	op["return"] = end
	l.recorded = append(l.recorded, op)
	if sawExpired != nil && (sawExpired.seen == 0 || end < sawExpired.seen) {
		sawExpired.seen = end
	}
}

// played lets clients work on a ledger at once, and returns what they saw as the lines of a history.
func played(clients, operations int, seed uint64) []map[string]any {
	l := newLedger()
	initial, _ := json.Marshal(l.posted)
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(client)))
			for {
				l.Lock()
				enough := len(l.recorded) >= operations-clients
				l.Unlock()
				if enough {
					return
				}
				l.do(random, client)
			}
		})
	}
	all.Wait()
	// In the end somebody looks at every hold, as a recorder has to.
	for _, hold := range l.holds {
		if hold.state == expired {
			if hold.seen == 0 {
				hold.seen = l.now()
			}
			l.recorded = append(l.recorded, map[string]any{"group": "g", "kind": "expire", "id": hold.id, "call": hold.call, "return": hold.seen})
		}
	}
	return append([]map[string]any{{"group": "g", "init": json.RawMessage(initial), "limits": l.limits}}, l.recorded...)
}

// text is a history as it stands in a file.
func text(history []map[string]any) string {
	var file strings.Builder
	encoder := json.NewEncoder(&file)
	for _, line := range history {
		if err := encoder.Encode(line); err != nil {
			panic(err)
		}
	}
	return file.String()
}

func TestALedgerBehindAMutexPasses(t *testing.T) {
	t.Logf("-seed=%d", *seed)
	if code, out := checked(t, text(played(8, 2000, *seed))); code != exitLinearizable {
		t.Fatalf("%d\n%s", code, out)
	} else {
		t.Log(out)
	}
}

// All amounts are multiples of ten, so that no order explains a balance that ends with another digit.
func TestOneReadThatIsWrongIsRefused(t *testing.T) {
	t.Logf("-seed=%d", *seed)
	history := played(8, 1000, *seed)
	reads := slices.DeleteFunc(slices.Clone(history), func(op map[string]any) bool { return op["kind"] != "read_account" })
	read := reads[rand.New(rand.NewPCG(*seed, 100)).IntN(len(reads))]
	read["posted"] = read["posted"].(int64) + 1
	code, out := checked(t, text(history))
	if code != exitNotLinearizable || !strings.Contains(out, fmt.Sprintf(`"posted":%d`, read["posted"])) {
		t.Fatalf("%d\n%s", code, out)
	}
	t.Log(out)
}

// BenchmarkFourClients checks a group of 4 clients, 4 accounts and 5,000 operations.
func BenchmarkFourClients(b *testing.B) {
	b.Logf("-seed=%d", *seed)
	history := text(played(4, 5000, *seed))
	for b.Loop() {
		if code, out := checked(b, history); code != exitLinearizable {
			b.Fatalf("%d\n%s", code, out)
		}
	}
}
