"""A journey with clients that another language generated from what `lastro proto` wrote.

usage: journey.py HOST:PORT ADMIN.JSON [CA.PEM], with the stubs on PYTHONPATH
"""

import json
import sys
import uuid

import grpc
from google.protobuf.duration_pb2 import Duration

from lastro.customers.v1 import auth_pb2, auth_pb2_grpc, users_pb2, users_pb2_grpc
from lastro.transactions.v1 import accounts_pb2, accounts_pb2_grpc, transaction_pb2, transactions_pb2, transactions_pb2_grpc
from lastro.type.v1 import money_pb2

PASSWORD = "correct horse battery"


def open_channel(address, authority):
    if authority is None:
        return grpc.insecure_channel(address)
    with open(authority, "rb") as file:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))


def main(address, admin_file, authority=None):
    channel = open_channel(address, authority)
    users = users_pb2_grpc.UsersServiceStub(channel)
    auth = auth_pb2_grpc.AuthServiceStub(channel)
    accounts = accounts_pb2_grpc.AccountsServiceStub(channel)
    transactions = transactions_pb2_grpc.TransactionsServiceStub(channel)

    def login(email, password):
        token = auth.Login(auth_pb2.LoginRequest(email=email, password=password)).access_token
        return [("authorization", f"Bearer {token}")]

    def someone(name):
        email = f"{uuid.uuid4()}@example.com"
        user = users.CreateUser(users_pb2.CreateUserRequest(name=name, email=email, password=PASSWORD))
        assert list(user.roles) == [users_pb2.User.USER], user
        return login(email, PASSWORD)

    def account(who):
        made = accounts.CreateAccount(accounts_pb2.CreateAccountRequest(currency_code="BRL"), metadata=who)
        return made.id

    def create(who, kind, amount, wait=10, key=None, **fields):
        request = transactions_pb2.CreateTransactionRequest(
            external_id=key or str(uuid.uuid4()), type=kind, wait=Duration(seconds=wait),
            amount=money_pb2.Money(currency_code="BRL", amount=amount), **fields)
        return transactions.CreateTransaction(request, metadata=who)

    with open(admin_file) as file:
        admin = login(**json.load(file))
    ana, rui = someone("Ana"), someone("Rui")
    source, target = account(ana), account(rui)
    kind = transaction_pb2.Transaction
    assert create(admin, kind.DEPOSIT, "100.00", destination_account_id=source).state == kind.COMPLETED
    first = create(ana, kind.TRANSFER, "25.50", key="k", source_account_id=source, destination_account_id=target)
    again = create(ana, kind.TRANSFER, "25.50", key="k", source_account_id=source, destination_account_id=target)
    assert (first.id, first.replayed, again.replayed) == (again.id, False, True)
    rejected = create(ana, kind.TRANSFER, "1000", source_account_id=source, destination_account_id=target)
    assert (rejected.state, rejected.reason) == (kind.REJECTED, "INSUFFICIENT_FUNDS")

    posted = accounts.GetAccount(accounts_pb2.GetAccountRequest(id=source), metadata=ana).posted
    assert posted.amount == "74.50", posted
    history = transactions.ListTransactions(transactions_pb2.ListTransactionsRequest(), metadata=ana).transactions
    assert [one.id for one in history] == [rejected.id, first.id, history[2].id] and len(history) == 3
    events = transactions.ListTransactionEvents(transactions_pb2.ListTransactionEventsRequest(id=first.id), metadata=rui).events
    assert [event.type for event in events] == ["SUBMITTED", "COMPLETED"]

    for who, code in [(rui, grpc.StatusCode.NOT_FOUND), ([], grpc.StatusCode.UNAUTHENTICATED)]:
        try:
            accounts.GetAccount(accounts_pb2.GetAccountRequest(id=source), metadata=who)
            raise AssertionError("somebody else read the account")
        except grpc.RpcError as error:
            assert error.code() == code, error
    print("journey complete")


main(*sys.argv[1:])
