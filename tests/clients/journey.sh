#!/usr/bin/env bash
# A journey with grpcurl alone, which learns the services by reflection.
# usage: journey.sh HOST:PORT ADMIN.JSON [CA.PEM], with $GRPCURL naming the program
set -euo pipefail
address=$1 admin_file=$2 transport=(-plaintext) grpcurl=${GRPCURL:-grpcurl}

[ -z "${3:-}" ] || transport=(-cacert "$3")

call() { # call METHOD JSON [TOKEN]
  "$grpcurl" "${transport[@]}" ${3:+-H "authorization: Bearer $3"} -d "$2" "$address" "lastro.$1"
}
field() { python3 -c 'import sys, json; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
fail() { echo "journey failed: $*" >&2; exit 1; }

services=$("$grpcurl" "${transport[@]}" "$address" list)
for service in customers.v1.UsersService customers.v1.AuthService transactions.v1.AccountsService transactions.v1.TransactionsService; do
  grep -qx "lastro.$service" <<<"$services" || fail "reflection does not list $service"
done
grep -q internal <<<"$services" && fail "reflection lists something internal"

email="$(date +%s%N)@example.com"
call customers.v1.UsersService/CreateUser '{"name":"Ana","email":"'"$email"'","password":"correct horse"}' >/dev/null
ana=$(call customers.v1.AuthService/Login '{"email":"'"$email"'","password":"correct horse"}' | field accessToken)
admin=$(call customers.v1.AuthService/Login "$(cat "$admin_file")" | field accessToken)
from=$(call transactions.v1.AccountsService/CreateAccount '{"currency_code":"BRL"}' "$ana" | field id)
to=$(call transactions.v1.AccountsService/CreateAccount '{"currency_code":"BRL"}' "$ana" | field id)
money() { echo '"amount":{"currency_code":"BRL","amount":"'"$1"'"},"wait":"5s"'; }
call transactions.v1.TransactionsService/CreateTransaction \
  '{"external_id":"d-'"$from"'","type":"DEPOSIT","destination_account_id":"'"$from"'",'"$(money 10.00)"'}' "$admin" >/dev/null
state=$(call transactions.v1.TransactionsService/CreateTransaction \
  '{"external_id":"t","type":"TRANSFER","source_account_id":"'"$from"'","destination_account_id":"'"$to"'",'"$(money 2.50)"'}' "$ana" | field state)
[ "$state" = COMPLETED ] || fail "the transfer is $state"
call transactions.v1.AccountsService/GetAccount '{"id":"'"$from"'"}' "$ana" | grep -q '"7.50"' || fail "the balance is not 7.50"
{ call transactions.v1.TransactionsService/GetTransaction '{"id":"x"}' "$ana" 2>&1 || true; } | grep -q InvalidArgument || fail "a bad id is not refused"
echo "journey complete"
