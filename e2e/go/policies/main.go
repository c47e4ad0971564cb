// Command network-policies enforces the NetworkPolicies of a cluster on one node: the controller of
// sigs.k8s.io/kube-network-policies, without what a lab does not need (metrics, NRI, cluster-wide policies).
//
// The controller decides about the first packet of each connection, which the kernel hands to it. It sets the rules for
// that itself, with the nftables expression `queue`; where a kernel lacks that, somebody else has to queue packets.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	config, err := rest.InClusterConfig()
	if err != nil {
		log.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		factory.Networking().V1().NetworkPolicies(),
		factory.Core().V1().Namespaces(),
		factory.Core().V1().Pods(),
		nil, nil, nil, nil,
		// NRI has no socket here, and the controller does without. It must not be disabled: v0.8.0 uses it nevertheless for
		// packets of addresses that are in the status of no pod, and crashes.
		networkpolicy.Config{NodeName: os.Getenv("NODE_NAME")},
	)
	if err != nil {
		log.Fatal(err)
	}
	factory.Start(ctx.Done())
	if err := controller.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
