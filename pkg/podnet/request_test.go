package podnet

import (
	"encoding/json"
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
