package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// servicesArg is what is done on the node of the clients.
type servicesArg struct {
	Do       string // objects, change or cold
	Proxy    string
	Services int        // objects: how many others there shall be
	Node     netip.Addr // its address
	Program  string     // cold: what programs the kernel
	Mode     string     // of kube-proxy
	PID      int        // of the program
}

// canary is a Service whose backends are listeners of this process.
const canary = "canary"

var canaryPorts = []int32{39001, 39002}

func servicesOnNode(ctx context.Context, data []byte) ([]Result, error) {
	var arg servicesArg
	if err := json.Unmarshal(data, &arg); err != nil {
		return nil, err
	}
	conf, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	conf.QPS = -1
	api, err := kubernetes.NewForConfig(conf)
	if err != nil {
		return nil, err
	}
	o := &objects{api, arg}
	switch arg.Do {
	case "objects":
		return nil, o.make(ctx)
	case "change":
		return o.change(ctx)
	case "cold":
		return o.cold(ctx)
	}
	return nil, fmt.Errorf("services %q is not known", arg.Do)
}

type objects struct {
	api kubernetes.Interface
	servicesArg
}

// make makes the canary, and Services with ten endpoints each that nobody has.
func (o *objects) make(ctx context.Context) error {
	if err := o.service(ctx, canary, []string{o.Node.String()}, canaryPorts[0]); err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range o.Services {
		g.Go(func() error {
			var endpoints []string
			for e := range 10 {
				endpoints = append(endpoints, fmt.Sprintf("10.%d.%d.%d", 200+e, i/250, i%250+1))
			}
			return o.service(ctx, fmt.Sprintf("filler-%d", i), endpoints, 8080)
		})
	}
	return g.Wait()
}

// service makes a Service and its slice; what is there already stays.
func (o *objects) service(ctx context.Context, name string, endpoints []string, port int32) error {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "x", Port: 80}}}}
	_, err := o.api.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, s, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	portName, ready := "x", true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}},
	}
	for _, e := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	_, err = o.api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, slice, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// backends listen, and say on which port. They end with ctx.
func (o *objects) backends(ctx context.Context) error {
	for _, port := range canaryPorts {
		l, err := net.Listen("tcp", netip.AddrPortFrom(o.Node, uint16(port)).String())
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprint(c, port)
				_ = c.Close()
			}
		}()
	}
	return nil
}

// ask makes a connection and returns which backend it got.
func ask(vip string) (string, error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(vip, "80"), time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	b := make([]byte, 16)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// open starts the backends and finds the canary's address.
func (o *objects) open(ctx context.Context) (vip string, err error) {
	if err := o.backends(ctx); err != nil {
		return "", err
	}
	s, err := o.api.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, canary, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return s.Spec.ClusterIP, nil
}

// change measures from before a slice is written until new connections go where
// it says.
func (o *objects) change(ctx context.Context) ([]Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	vip, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	slices := o.api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	var took []time.Duration
	const warm = 5
	changes := 100
	if !strings.HasPrefix(o.Proxy, proxyOurs) {
		changes = 20 // kube-proxy takes at least a second for each
	}
	for i := range warm + changes {
		slice, err := slices.Get(ctx, canary, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		port := canaryPorts[(i+1)%2]
		slice.Ports[0].Port = &port
		began := time.Now()
		if _, err := slices.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			return nil, err
		}
		err = poll(ctx, time.Millisecond, time.Minute, "a changed endpoint to count", func() bool {
			got, err := ask(vip)
			return err == nil && got == strconv.Itoa(int(port))
		})
		if err != nil {
			return nil, err
		}
		if i >= warm {
			took = append(took, time.Since(began))
		}
		time.Sleep(50 * time.Millisecond) // the next one finds all at rest
	}
	p50, p99 := latencies("services/"+o.Proxy+"/change", took)
	progress("%s: a change counts after %.1f ms, p99 %.1f", o.Proxy, p50.Value, p99.Value)
	if o.Proxy == proxyOurs {
		p50, p99 = p50.atMost(20), p99.atMost(100)
	}
	return []Result{p50, p99}, nil
}

// cold measures from the start of the program, with nothing in the kernel, until
// the canary answers; and then its memory.
func (o *objects) cold(ctx context.Context) ([]Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	age, err := ageOf(o.PID)
	if err != nil {
		return nil, err
	}
	began := time.Now().Add(-age)
	vip, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := ask(vip); err == nil {
		return nil, errors.New("the canary answers before anything was loaded")
	}
	err = poll(ctx, 10*time.Millisecond, 10*time.Minute, "the canary to answer", func() bool { _, err := ask(vip); return err == nil })
	if err != nil {
		return nil, err
	}
	loaded := time.Since(began)
	mem, err := memoryOf(o.PID)
	progress("%s: %d services loaded %.2f s after its start; %.0f MiB resident, %.0f at most", o.Proxy, o.Services, loaded.Seconds(), mem.Now, mem.Peak)
	cold := figure("services/"+o.Proxy+"/cold", "s", loaded.Seconds())
	rss := figure("services/"+o.Proxy+"/rss-peak", "MiB", mem.Peak)
	if o.Proxy == proxyOurs {
		cold, rss = cold.atMost(5), rss.atMost(150)
	}
	return []Result{cold, rss}, err
}

// ageOf is how long ago a process started (proc_pid_stat(5), field 22).
func ageOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const started, perSecond = 22 - 3, 100 // the first field here is the third
	ticks, err := strconv.ParseInt(fields[started], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read start of process %d: %w", pid, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, err
	}
	return time.Duration(now.Nano()) - time.Duration(ticks)*time.Second/perSecond, nil
}
