package podnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Listen makes the agent's socket at path. The socket appears there complete,
// by rename: a plugin finds the old one or the new one, and an agent that is
// still shutting down does not take the new one with it.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create directory of socket: %w", err)
	}
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", aside, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(aside, 0o600), os.Rename(aside, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("put socket at %s: %w", path, err), l.Close())
	}
	return &listener{UnixListener: l}, nil
}

// listener accepts connections of root only. The file's mode says the same;
// this also holds where the directory was mounted somewhere else.
type listener struct{ *net.UnixListener }

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err != nil || uid != 0 {
			c.Close()
			continue
		}
		return &conn{UnixConn: c}, nil
	}
}

func peerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// conn keeps the file descriptor that came with what was read.
type conn struct {
	*net.UnixConn
	mu     sync.Mutex
	passed *os.File // guarded by mu
}

func (c *conn) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if oobn > 0 {
		c.keep(oob[:oobn])
	}
	if n == 0 && err == nil && len(b) > 0 {
		return 0, io.EOF
	}
	return n, err
}

// keep stores the first descriptor and closes all others.
func (c *conn) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if f := os.NewFile(uintptr(fd), "netns"); c.passed == nil {
				c.passed = f
			} else {
				f.Close()
			}
		}
	}
}

// takePassed hands the descriptor over to the caller; nil if there is none.
func (c *conn) takePassed() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.passed
	c.passed = nil
	return f
}

func (c *conn) Close() error {
	if f := c.takePassed(); f != nil {
		f.Close()
	}
	return c.UnixConn.Close()
}
