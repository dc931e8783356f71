{{- define "fednano.name" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/* Of a part: (dict "root" $ "part" "server") */}}
{{- define "fednano.selector" -}}
app.kubernetes.io/name: fednano
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "fednano.labels" -}}
{{ include "fednano.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "fednano.image" -}}
{{- $image := (index .root.Values .part).image -}}
{{ .root.Values.image.registry }}{{ $image.name }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end }}

{{- define "fednano.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "fednano.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The identity, metrics and settings that every service has, then those that the values name. */}}
{{- define "fednano.environment" -}}
{{- $own := index .root.Values .part -}}
- {name: FEDNANO_TLS_CA, value: /identity/ca.crt}
- {name: FEDNANO_TLS_CERT, value: /identity/tls.crt}
- {name: FEDNANO_TLS_KEY, value: /identity/tls.key}
{{- if .root.Values.tls.revocationList }}
- {name: FEDNANO_TLS_CRL, value: /revocation/ca.crl}
{{- end }}
- {name: FEDNANO_SHUTDOWN_GRACE_S, value: {{ $own.shutdownGraceS | quote }}}
{{- if .root.Values.metrics.enabled }}
- {name: FEDNANO_METRICS_LISTEN, value: "0.0.0.0:9100"}
{{- end }}
{{- range $name, $value := $own.settings }}
- {name: {{ printf "FEDNANO_%s" (upper $name) }}, value: {{ include "fednano.plain" $value | quote }}}
{{- end }}
{{- end }}

{{/* A number without an exponent: helm reads 536870912 as 5.36870912e+08. */}}
{{- define "fednano.plain" -}}
{{- if kindIs "float64" . }}{{ if eq . (floor .) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- define "fednano.commonMounts" -}}
- {name: identity, mountPath: /identity, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.tls.revocationList }}
- {name: revocation, mountPath: /revocation, readOnly: true}
{{- end }}
{{- end }}

{{- define "fednano.commonVolumes" -}}
- name: identity
  secret:
    secretName: {{ required (printf "%s.tlsSecret: name a Secret with tls.crt, tls.key and ca.crt" .part) (index .root.Values .part).tlsSecret }}
    defaultMode: 0440
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- if .root.Values.tls.revocationList }}
- name: revocation
  configMap: {name: {{ .root.Values.tls.revocationList }}}
{{- end }}
{{- end }}

{{/* Asks over mTLS, by the service's own certificate, as kubelet's own gRPC probe cannot. */}}
{{- define "fednano.probes" -}}
{{- $probe := dict "command" (list "python" "-m" "fednano.rpc.probe") -}}
startupProbe:
  exec: {{ toJson $probe }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: {{ div (index .root.Values .part).startupS 10 }}
readinessProbe:
  exec: {{ toJson $probe }}
  periodSeconds: 10
  timeoutSeconds: 10
livenessProbe:
  exec: {{ toJson $probe }}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{- define "fednano.placement" -}}
{{- $own := index .root.Values .part -}}
{{- with $own.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* A claim that is made here outlives the release. */}}
{{- define "fednano.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "fednano.name" .root }}-{{ .name }}
  labels: {{ include "fednano.labels" (dict "root" .root "part" "aggregator") | nindent 4 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: [ReadWriteOnce]
  {{- with .claim.storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests: {storage: {{ .claim.size }}}
{{- end }}
