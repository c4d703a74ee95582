package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// getResult is what labtool get prints.
type getResult struct {
	Status int     `json:"status"`
	Server seen    `json:"server"`
	Millis float64 `json:"millis"`
}

// get makes one request, connection included, of a labtool server.
func get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	result := getResult{Status: resp.StatusCode}
	if err := json.NewDecoder(resp.Body).Decode(&result.Server); err != nil {
		return fmt.Errorf("decode answer of %s: %w", url, err)
	}
	result.Millis = float64(time.Since(start).Microseconds()) / 1000
	return printJSON(result)
}
