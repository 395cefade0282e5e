//! What a start prints: where it listens, and after the first start a session to paste.

use std::net::SocketAddr;

use lastro_customers::Administrator;

/// Where the process listens.
pub struct Listening {
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    pub ops: SocketAddr,
}

/// The lines after every start.
pub fn listening(on: &Listening) -> String {
    format!("lastro is up\n  REST  http://{}  (reference at /docs)\n  gRPC  {}\n  ops   http://{}/metrics", on.rest, on.grpc, on.ops)
}

/// The first session, ready to paste.
pub fn first_session(on: &Listening, administrator: &Administrator, admin_file: &str) -> String {
    let (rest, grpc) = (on.rest, on.grpc);
    let (email, password) = (&administrator.email, &administrator.password);
    format!(
        r#"
The administrator, made now and kept in {admin_file}:
  email {email}
  password {password}

A first session, to paste into another terminal:

  API=http://{rest}/api/v1
  json() {{ python3 -c "import sys, json; print(json.load(sys.stdin)['$1'])"; }}
  curl -s $API/users -H 'content-type: application/json' -d '{{"name":"Ana","email":"ana@example.com","password":"correct horse"}}'
  curl -s $API/users -H 'content-type: application/json' -d '{{"name":"Rui","email":"rui@example.com","password":"correct horse"}}'
  ADMIN=$(curl -s $API/auth/login -H 'content-type: application/json' -d '{{"email":"{email}","password":"{password}"}}' | json accessToken)
  ANA=$(curl -s $API/auth/login -H 'content-type: application/json' -d '{{"email":"ana@example.com","password":"correct horse"}}' | json accessToken)
  RUI=$(curl -s $API/auth/login -H 'content-type: application/json' -d '{{"email":"rui@example.com","password":"correct horse"}}' | json accessToken)
  FROM=$(curl -s $API/accounts -H "authorization: Bearer $ANA" -H 'content-type: application/json' -d '{{"currencyCode":"BRL","displayName":"Ana"}}' | json id)
  TO=$(curl -s $API/accounts -H "authorization: Bearer $RUI" -H 'content-type: application/json' -d '{{"currencyCode":"BRL","displayName":"Rui"}}' | json id)
  curl -s $API/transactions -H "authorization: Bearer $ADMIN" -H 'content-type: application/json' -H 'Idempotency-Key: deposit-1' -H 'Prefer: wait=5' \
    -d '{{"type":"DEPOSIT","destinationAccountId":"'$FROM'","amount":{{"currencyCode":"BRL","amount":"100.00"}}}}'
  curl -s $API/transactions -H "authorization: Bearer $ANA" -H 'content-type: application/json' -H 'Idempotency-Key: transfer-1' -H 'Prefer: wait=5' \
    -d '{{"type":"TRANSFER","sourceAccountId":"'$FROM'","destinationAccountId":"'$TO'","amount":{{"currencyCode":"BRL","amount":"25.50"}}}}'
  curl -s $API/accounts -H "authorization: Bearer $ANA"

The same transfer over gRPC:

  grpcurl -plaintext -H "authorization: Bearer $ANA" -d '{{"external_id":"transfer-2","type":"TRANSFER","source_account_id":"'$FROM'","destination_account_id":"'$TO'","amount":{{"currency_code":"BRL","amount":"1.00"}},"wait":"5s"}}' \
    {grpc} lastro.transactions.v1.TransactionsService/CreateTransaction
  grpcurl -plaintext -H "authorization: Bearer $ANA" {grpc} lastro.transactions.v1.TransactionsService/ListTransactions
"#
    )
}
