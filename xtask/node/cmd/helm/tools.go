//go:build tools

// Package helm keeps Helm in go.mod: it is built from its own main package.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
