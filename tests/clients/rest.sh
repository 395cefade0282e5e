#!/usr/bin/env bash
# A journey with curl alone.
# usage: rest.sh BASE ADMIN.JSON [CA.PEM]
set -euo pipefail
base=$1 admin_file=$2 transport=()
[ -z "${3:-}" ] || transport=(--cacert "$3")

call() { # call METHOD PATH JSON [TOKEN] [HEADER…]
  local method=$1 path=$2 body=$3 token=${4:-}
  shift $(($# < 4 ? $# : 4))
  local headers=(-H 'content-type: application/json')
  [ -z "$token" ] || headers+=(-H "authorization: Bearer $token")
  for header in "$@"; do headers+=(-H "$header"); done
  curl --silent --show-error "${transport[@]}" -X "$method" "${headers[@]}" ${body:+-d "$body"} "$base/api/v1$path"
}
field() { python3 -c 'import sys, json; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
fail() { echo "journey failed: $*" >&2; exit 1; }

email="$(date +%s%N)@example.com"
call POST /users '{"name":"Ana","email":"'"$email"'","password":"correct horse"}' >/dev/null
ana=$(call POST /auth/login '{"email":"'"$email"'","password":"correct horse"}' | field accessToken)
admin=$(call POST /auth/login "$(cat "$admin_file")" | field accessToken)
from=$(call POST /accounts '{"currencyCode":"BRL"}' "$ana" | field id)
to=$(call POST /accounts '{"currencyCode":"BRL"}' "$ana" | field id)
money() { echo '"amount":{"currencyCode":"BRL","amount":"'"$1"'"}'; }
call POST /transactions '{"type":"DEPOSIT","destinationAccountId":"'"$from"'",'"$(money 10.00)"'}' "$admin" "idempotency-key: d-$from" 'prefer: wait=5' >/dev/null
transfer='{"type":"TRANSFER","sourceAccountId":"'"$from"'","destinationAccountId":"'"$to"'",'"$(money 2.50)"'}'
first=$(call POST /transactions "$transfer" "$ana" "idempotency-key: t-$from" 'prefer: wait=5')
[ "$(field state <<<"$first")" = COMPLETED ] || fail "the transfer: $first"
again=$(call POST /transactions "$transfer" "$ana" "idempotency-key: t-$from" 'prefer: wait=5')
[ "$(field id <<<"$again") $(field replayed <<<"$again")" = "$(field id <<<"$first") True" ] || fail "the same key again: $again"
call GET "/accounts/$from" '' "$ana" | grep -q '"7.50"' || fail "the balance is not 7.50"
call GET "/accounts/$from" '' "$admin" >/dev/null
call GET "/transactions/$(field id <<<"$first")/events" '' "$ana" | grep -q COMPLETED || fail "the events"
call GET /users/me '' garbage | grep -q UNAUTHENTICATED || fail "a token that is none is believed"
echo "journey complete"
