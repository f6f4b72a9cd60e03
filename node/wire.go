package node

import (
	"encoding/json"
	"fmt"
)

// wireVersion begins every message between nodes that this package makes. A
// message of another version is refused; fields may be added to a JSON one.
const wireVersion = 1

// encodeWire writes a message as its version and JSON.
func encodeWire(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append([]byte{wireVersion}, raw...), nil
}

func decodeWire(raw []byte, v any) error {
	body, err := wireBody(raw)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// wireBody checks the version and returns what follows it.
func wireBody(raw []byte) ([]byte, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("empty message")
	}
	if raw[0] != wireVersion {
		return nil, fmt.Errorf("message of version %d, this node knows %d", raw[0], wireVersion)
	}
	return raw[1:], nil
}
