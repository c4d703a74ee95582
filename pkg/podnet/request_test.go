package podnet

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

func TestParseArgs(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"":                  {},
		";;=;a":             {"": ""},
		"A=1;B=2":           {"A": "1", "B": "2"},
		"A=x=y;IgnoreUnk=1": {"A": "x=y", "IgnoreUnk": "1"},
	} {
		if diff := cmp.Diff(want, parseArgs(in)); diff != "" {
			t.Errorf("%q: %s", in, diff)
		}
	}
}

// FuzzParse: whatever arrives, an error has a code and can be printed.
func FuzzParse(f *testing.F) {
	f.Add("ADD", "a", "eth0", "K=V", []byte(config))
	f.Add("GC", "", "", "", []byte(`{"cniVersion":"1.1.0","name":"x","cni.dev/valid-attachments":[]}`))
	f.Add("CHECK", "a", "eth0", "", []byte(`{"cniVersion":"0.4.0","name":"x","prevResult":{"ips":[{"address":"1.2.3.4/33"}]}}`))
	f.Fuzz(func(t *testing.T, verb, id, ifname, args string, conf []byte) {
		req, err := parse(api.Request{Command: verb, ContainerID: id, IfName: ifname, Args: args, Config: conf}, nil)
		if err == nil {
			err = checkAdd(req)
		}
		if err == nil {
			err = checkPrevResult(req, model.Pod{})
		}
		if err == nil {
			return
		}
		var printed api.Error
		if e := asError(err); e.Code == 0 || json.Unmarshal(encodeError(req.version, e), &printed) != nil {
			t.Errorf("error %v prints as %s", err, encodeError(req.version, e))
		}
	})
}

// TestHostPorts: what the runtime says of host ports is understood, or refused
// with what is wrong.
func TestHostPorts(t *testing.T) {
	for name, tt := range map[string]struct{ mappings, want, refused string }{
		"none":              {`[]`, "", ""},
		"two":               {`[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":53,"containerPort":5353,"protocol":"UDP","hostIP":"192.0.2.1"}]`, "17/53:5353@192.0.2.1 6/8080:80", ""},
		"on every address":  {`[{"hostPort":8080,"containerPort":80,"hostIP":"0.0.0.0"}]`, "6/8080:80", ""},
		"without host port": {`[{"containerPort":80}]`, "", ""},
		"port too large":    {`[{"hostPort":80800,"containerPort":80}]`, "", "port mapping 80800"},
		"unknown protocol":  {`[{"hostPort":8080,"containerPort":80,"protocol":"icmp"}]`, "", "icmp"},
		"no address":        {`[{"hostPort":8080,"containerPort":80,"hostIP":"here"}]`, "", `hostIP "here"`},
	} {
		t.Run(name, func(t *testing.T) {
			config := `{"cniVersion":"1.1.0","name":"clustermesh","type":"clustermesh-cni","runtimeConfig":{"portMappings":` + tt.mappings + `}}`
			r, err := parse(api.Request{Command: "ADD", ContainerID: "c", IfName: "eth0", Config: []byte(config)}, nil)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("error %v, want one that names %q", err, tt.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := model.JoinHostPorts(r.ports); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if again := model.JoinHostPorts(model.ParseHostPorts(tt.want)); again != tt.want {
				t.Errorf("read back %q, want %q", again, tt.want)
			}
		})
	}
}
