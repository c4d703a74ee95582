{{- /* Labels of every object; the argument is a dict with root and component. */}}
{{- define "clustermesh.labels" -}}
{{ include "clustermesh.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels that select pods; they never change between versions. */}}
{{- define "clustermesh.selector" -}}
app.kubernetes.io/name: clustermesh
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "clustermesh.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The configuration file: the part of the values that pkg/config reads, unchanged. */}}
{{- define "clustermesh.config" -}}
{{ pick .Values "cluster" "kubernetes" "ipam" "routing" "masquerade" "services" "apiserver" "cni" "log" | toYaml }}
{{- end }}

{{- /* The API server must run before the pod network does where it hands out the pod CIDRs. */}}
{{- define "clustermesh.apiserverOnHost" -}}
{{- if or (eq .Values.apiserver.exposure "HostNetwork") (eq .Values.ipam.mode "cluster-pool") }}true{{ end }}
{{- end }}

{{- define "clustermesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Where the kubelet asks for the API server's health; on the host's network that is the loopback address. */}}
{{- define "clustermesh.apiserverProbe" -}}
{ {{- if index . 0 }}host: 127.0.0.1, {{ end }}port: 9474, path: {{ index . 1 -}} }
{{- end }}
