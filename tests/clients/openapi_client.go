// A journey with the client that openapi-generator makes for Go of /openapi.json.
//
// usage: journey http://HOST:PORT ADMIN.JSON
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	lastro "github.com/lastro/client"
)

const password = "correct horse battery"

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatalf("%v", err)
	}
	return value
}

// The generated calls answer a response of HTTP as well.
func answer[T any, R any](value T, response R, err error) T {
	if err != nil {
		log.Fatalf("%v: %v", response, err)
	}
	return value
}

func main() {
	configuration := lastro.NewConfiguration()
	configuration.Servers = lastro.ServerConfigurations{{URL: os.Args[1]}}
	client := lastro.NewAPIClient(configuration)
	login := func(email, password string) context.Context {
		request := *lastro.NewLoginRequest(email, password)
		tokens := answer(client.AuthAPI.Login(context.Background()).LoginRequest(request).Execute())
		return context.WithValue(context.Background(), lastro.ContextAccessToken, tokens.AccessToken)
	}
	var administrator struct{ Email, Password string }
	if err := json.Unmarshal(must(os.ReadFile(os.Args[2])), &administrator); err != nil {
		log.Fatal(err)
	}
	admin := login(administrator.Email, administrator.Password)

	email := fmt.Sprintf("go%d@example.com", time.Now().UnixNano())
	create := *lastro.NewCreateUserRequest(email, "Rui", password)
	answer(client.UsersAPI.CreateUser(context.Background()).CreateUserRequest(create).Execute())
	own := login(email, password)
	open := func() string {
		request := *lastro.NewCreateAccountRequest("BRL")
		return answer(client.AccountsAPI.CreateAccount(own).CreateAccountRequest(request).Execute()).Id
	}
	from, to := open(), open()

	deposit := *lastro.NewCreateTransactionRequest(lastro.DEPOSIT)
	deposit.SetAmount(*lastro.NewMoney("100.00", "BRL"))
	deposit.SetDestinationAccountId(from)
	made := answer(client.TransactionsAPI.CreateTransaction(admin).Prefer("wait=10").IdempotencyKey(email).CreateTransactionRequest(deposit).Execute())
	if made.State != lastro.COMPLETED {
		log.Fatalf("the deposit is %s", made.State)
	}
	transfer := *lastro.NewCreateTransactionRequest(lastro.TRANSFER)
	transfer.SetAmount(*lastro.NewMoney("40.00", "BRL"))
	transfer.SetExternalId("by a generated client")
	transfer.SetSourceAccountId(from)
	transfer.SetDestinationAccountId(to)
	moved := answer(client.TransactionsAPI.CreateTransaction(own).Prefer("wait=10").CreateTransactionRequest(transfer).Execute())
	if moved.State != lastro.COMPLETED {
		log.Fatalf("the transfer is %s", moved.State)
	}
	if amount := answer(client.AccountsAPI.GetAccount(own, to).Execute()).Available.Amount; amount != "40.00" {
		log.Fatalf("the other account has %s", amount)
	}
	page := answer(client.TransactionsAPI.ListTransactions(own).State(lastro.COMPLETED).Type_(lastro.TRANSFER).Execute())
	if len(page.Transactions) != 1 || page.Transactions[0].Id != moved.Id {
		log.Fatalf("listed were %v", page.Transactions)
	}
	fmt.Println("journey complete")
}
