{{/* Names, labels, and the two files that the chart computes. */}}
{{- define "vipr.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "vipr.fullname" -}}
{{- $name := include "vipr.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "vipr.selector" -}}
app.kubernetes.io/name: {{ include "vipr.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vipr.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "vipr.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "vipr.serviceAccount" -}}
{{- default (ternary (include "vipr.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "vipr.image" -}}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}{{ end }}
{{- end }}

{{/* https://HOST:PORT of the API server; empty where a kubeconfig of the host says it, or where nothing is known. */}}
{{- define "vipr.apiServer" -}}
{{- $host := .Values.k8sServiceHost }}
{{- if .Values.kubeconfigHostPath }}
{{- else if eq $host "auto" }}
{{- $published := lookup "v1" "ConfigMap" "kube-public" "cluster-info" }}
{{- if $published }}{{ (first (get ($published.data.kubeconfig | fromYaml) "clusters")).cluster.server }}{{ end }}
{{- else if $host }}
{{- if contains ":" $host }}{{ $host = printf "[%s]" (trimAll "[]" $host) }}{{ end }}
{{- printf "https://%s:%d" $host (int .Values.k8sServicePort) }}
{{- end }}
{{- end }}

{{/* What the agent reads as --config: the values, and what the chart decides. */}}
{{- define "vipr.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $file := ternary "/var/lib/vipr-kubeconfig" "/var/lib/vipr/kubeconfig.conf" (ne .Values.kubeconfigHostPath "") }}
{{- $_ := set $config "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" }}
{{- $_ := set $config "kind" "KubeProxyConfiguration" }}
{{- $_ := set $config "clientConnection" (merge (dict "kubeconfig" $file) (default dict $config.clientConnection)) }}
{{- if and .Values.metrics.enabled (not $config.metricsBindAddress) }}
{{- $_ := set $config "metricsBindAddress" "0.0.0.0:10249" }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* The port of an IP:PORT of the configuration; kube-proxy's default where it has none (a bare IPv6 address has colons too). */}}
{{- define "vipr.port" -}}
{{- if regexMatch "^([^:]*|\\[.*\\]):[0-9]+$" (default "" .address) }}{{ regexFind "[0-9]+$" .address }}{{ else }}{{ .default }}{{ end }}
{{- end }}
