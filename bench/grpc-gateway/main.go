// The gateway that Go has for the same contracts: REST in front of a gRPC service, as grpc-gateway's documentation sets it up, and nothing more:
// no token is verified, nothing is limited, counted or logged.
//
// usage: grpc-gateway ADDRESS-OF-REST ADDRESS-OF-GRPC
package main

import (
	"context"
	"log"
	"net/http"
	"os"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	transactionsv1 "lastro.dev/go/transactions/v1"
)

func main() {
	mux := runtime.NewServeMux()
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if err := transactionsv1.RegisterAccountsServiceHandlerFromEndpoint(context.Background(), mux, os.Args[2], options); err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}
