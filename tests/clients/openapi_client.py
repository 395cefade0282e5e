"""A journey with the client that openapi-generator makes for Python of /openapi.json.

usage: openapi_client.py http://HOST:PORT ADMIN.JSON, with the package lastro_client on PYTHONPATH
"""

import json
import sys
import uuid

import lastro_client as lastro

PASSWORD = "correct horse battery"


def main(base, admin_file):
    def api(token=None):
        return lastro.ApiClient(lastro.Configuration(host=base, access_token=token))

    def login(email, password):
        return lastro.AuthApi(api()).login(lastro.LoginRequest(email=email, password=password)).access_token

    with open(admin_file, encoding="utf-8") as file:
        administrator = json.load(file)
    admin = lastro.TransactionsApi(api(login(administrator["email"], administrator["password"])))

    email = f"{uuid.uuid4()}@example.com"
    user = lastro.UsersApi(api()).create_user(lastro.CreateUserRequest(name="Ana", email=email, password=PASSWORD))
    assert user.email == email and user.roles == [lastro.UserRole.USER], user
    token = login(email, PASSWORD)
    accounts, transactions = lastro.AccountsApi(api(token)), lastro.TransactionsApi(api(token))
    opened = [accounts.create_account(lastro.CreateAccountRequest(currency_code="BRL")) for _ in range(2)]

    def amount(text):
        return lastro.Money(currency_code="BRL", amount=text)

    deposit = admin.create_transaction(
        prefer="wait=10",
        idempotency_key=str(uuid.uuid4()),
        create_transaction_request=lastro.CreateTransactionRequest(
            type=lastro.TransactionType.DEPOSIT, destination_account_id=opened[0].id, amount=amount("100.00")
        ),
    )
    assert deposit.state == lastro.TransactionState.COMPLETED, deposit
    transfer = transactions.create_transaction(
        prefer="wait=10",
        create_transaction_request=lastro.CreateTransactionRequest(
            external_id="by a generated client",
            type=lastro.TransactionType.TRANSFER,
            source_account_id=opened[0].id,
            destination_account_id=opened[1].id,
            amount=amount("40.00"),
        ),
    )
    assert transfer.state == lastro.TransactionState.COMPLETED, transfer
    assert accounts.get_account(opened[1].id).available.amount == "40.00"
    listed = transactions.list_transactions(type=lastro.TransactionType.TRANSFER, state=lastro.TransactionState.COMPLETED)
    assert [one.id for one in listed.transactions] == [transfer.id], listed
    events = transactions.list_transaction_events(transfer.id).events
    assert [event.type for event in events] == ["SUBMITTED", "COMPLETED"], events
    try:
        accounts.get_account(str(uuid.uuid4()))
        raise AssertionError("nobody's account was found")
    except lastro.exceptions.NotFoundException as refused:
        assert json.loads(refused.body)["reason"] == "ACCOUNT_NOT_FOUND", refused
    print("journey complete")


main(*sys.argv[1:])
