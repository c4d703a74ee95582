package podnet

import (
	"errors"
	"fmt"

	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

// Error is why a CNI verb failed. Code is of the CNI specification, Remedy says
// what a person can do.
type Error struct {
	Code   uint
	Msg    string
	Remedy string
	Err    error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	if e.Msg == "" {
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

func refuse(code uint, remedy, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...), Remedy: remedy}
}

// asError gives err a code if it has none.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if e == err {
			return e
		}
		return &Error{Code: e.Code, Remedy: e.Remedy, Err: err}
	}
	return &Error{Code: api.CodeInternal, Err: err}
}
