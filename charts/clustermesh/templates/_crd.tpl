{{- /* Schemas that the CRD uses several times. */}}
{{- define "clustermesh.crd.endpoint" -}}
type: string
maxLength: 262
pattern: '^([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\]):[0-9]{1,5}$'
x-kubernetes-validations:
  - rule: int(self.substring(self.lastIndexOf(':') + 1)) >= 1 && int(self.substring(self.lastIndexOf(':') + 1)) <= 65535
    message: "must be host:port with a port from 1 to 65535, for example 192.0.2.1:7473 or [2001:db8::1]:7473"
{{- end }}

{{- define "clustermesh.crd.cidr" -}}
type: string
maxLength: 43
x-kubernetes-validations:
  - rule: isCIDR(self) && cidr(self) == cidr(self).masked()
    message: must be a network in CIDR notation without host bits, for example 10.2.0.0/16 or 2001:db8:2::/48
{{- end }}

{{- define "clustermesh.crd.namespaces" -}}
type: array
maxItems: 4096
x-kubernetes-list-type: set
items: {type: string, maxLength: 63, pattern: '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'}
{{- end }}

{{- define "clustermesh.crd.duration" -}}
type: string
maxLength: 32
pattern: '^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$'
{{- end }}

{{- define "clustermesh.crd.conditions" -}}
type: array
x-kubernetes-list-type: map
x-kubernetes-list-map-keys: [type]
items:
  type: object
  required: [type, status, lastTransitionTime, reason, message]
  properties:
    type: {type: string, maxLength: 316}
    status: {type: string, enum: ["True", "False", Unknown]}
    observedGeneration: {type: integer, format: int64, minimum: 0}
    lastTransitionTime: {type: string, format: date-time}
    reason: {type: string, minLength: 1, maxLength: 1024, pattern: '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'}
    message: {type: string, maxLength: 32768}
{{- end }}

{{- define "clustermesh.crd.address" -}}
type: string
maxLength: 39
x-kubernetes-validations:
  - rule: isIP(self)
    message: must be an address, for example 192.0.2.10 or 2001:db8::10
{{- end }}

{{- define "clustermesh.crd.selector" -}}
type: object
properties:
  matchLabels:
    type: object
    maxProperties: 64
    additionalProperties: {type: string, maxLength: 63}
  matchExpressions:
    type: array
    maxItems: 64
    items:
      type: object
      required: [key, operator]
      properties:
        key: {type: string, maxLength: 317}
        operator: {type: string, enum: [In, NotIn, Exists, DoesNotExist]}
        values: {type: array, maxItems: 256, items: {type: string, maxLength: 63}}
{{- end }}

{{- define "clustermesh.crd.counts" -}}
type: object
properties:
  ipv4: {type: integer, format: int64}
  ipv6: {type: integer, format: int64}
{{- end }}

{{- define "clustermesh.crd.serviceexport" -}}
description: A ServiceExport makes the Service of the same name and namespace known to the other clusters.
type: object
properties:
  apiVersion: {type: string}
  kind: {type: string}
  metadata: {type: object}
  spec:
    type: object
    properties:
      exportedLabels: {type: object, additionalProperties: {type: string}}
      exportedAnnotations: {type: object, additionalProperties: {type: string}}
  status:
    type: object
    properties:
      conditions:
        {{- include "clustermesh.crd.conditions" . | nindent 8 }}
{{- end }}

{{- define "clustermesh.crd.serviceimport" -}}
description: A ServiceImport is a Service that clusters of the set export. A controller writes it, nobody else should.
type: object
properties:
  apiVersion: {type: string}
  kind: {type: string}
  metadata: {type: object}
  spec:
    type: object
    required: [type, ports]
    properties:
      type: {type: string, enum: [ClusterSetIP, Headless]}
      ports:
        type: array
        x-kubernetes-list-type: atomic
        items:
          type: object
          required: [port]
          properties:
            name: {type: string}
            protocol: {type: string}
            appProtocol: {type: string}
            port: {type: integer, format: int32}
      ips: {type: array, maxItems: 2, items: {type: string}}
      ipFamilies: {type: array, maxItems: 2, items: {type: string}}
      sessionAffinity: {type: string}
      sessionAffinityConfig:
        type: object
        properties:
          clientIP:
            type: object
            properties:
              timeoutSeconds: {type: integer, format: int32}
      internalTrafficPolicy: {type: string}
      trafficDistribution: {type: string}
  status:
    type: object
    properties:
      endpointSliceObjects: {type: string, enum: [Present, Absent]}
      clusters:
        type: array
        x-kubernetes-list-type: map
        x-kubernetes-list-map-keys: [cluster]
        items:
          type: object
          required: [cluster]
          properties:
            cluster: {type: string}
      conditions:
        {{- include "clustermesh.crd.conditions" . | nindent 8 }}
{{- end }}
