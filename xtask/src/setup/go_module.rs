//! Reads what a `go.mod` of tools says about building them.

/// A `go.mod` as far as it matters here.
#[derive(Debug, PartialEq)]
pub(super) struct Module {
    pub(super) tools: Vec<String>,
    /// The version of k8s.io/kubernetes, such as `v1.37.2`.
    kubernetes: Option<String>,
}

/// The last element of the package's path that says something.
pub(super) fn binary_name(package: &str) -> &str {
    match package {
        "go.etcd.io/etcd/server/v3" => "etcd",
        _ => package.rsplit('/').next().unwrap_or(package),
    }
}

/// The `tool` lines, alone or in a block, and the version of Kubernetes.
pub(super) fn parse(text: &str) -> Module {
    let mut module = Module { tools: Vec::new(), kubernetes: None };
    let mut block = "";
    for line in text.lines().map(|line| line.split("//").next().unwrap_or(line).trim()) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [")"] => block = "",
            [directive, "("] => block = directive,
            ["tool", package] => module.tools.push(package.to_owned()),
            [package] if block == "tool" => module.tools.push(package.to_owned()),
            ["require", "k8s.io/kubernetes", version] => module.kubernetes = Some(version.to_owned()),
            ["k8s.io/kubernetes", version] if block == "require" => {
                module.kubernetes = Some(version.to_owned())
            }
            _ => {}
        }
    }
    module
}

impl Module {
    /// Stripped. Kubernetes' build stamps its version in, without which the API server calls itself v0.0.0-master.
    pub(super) fn link_flags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        let minor = |version: &str| version.split('.').nth(1).map(str::to_owned);
        if let Some((version, minor)) = self.kubernetes.as_ref().and_then(|v| Some((v, minor(v)?))) {
            for (name, value) in [("gitVersion", version.as_str()), ("gitMajor", "1"), ("gitMinor", &minor)] {
                flags += &format!(" -X k8s.io/component-base/version.{name}={value}");
            }
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_in_lines_and_in_blocks_and_the_version_is_stamped() {
        let module = parse(
            "module x // tool no\n\ntool (\n\tgo.etcd.io/etcd/server/v3\n\tk8s.io/kubernetes/cmd/kubectl // yes\n)\n\
             tool helm.sh/helm/v4/cmd/helm\nrequire (\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\n\
             replace (\n\tk8s.io/api => k8s.io/api v0.37.2\n)\n",
        );
        let names: Vec<_> = module.tools.iter().map(|package| binary_name(package)).collect();
        assert_eq!(names, ["etcd", "kubectl", "helm"]);
        assert_eq!(module.kubernetes.as_deref(), Some("v1.37.2"));
        assert!(module.link_flags().ends_with("gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"));
        assert_eq!(parse("tool a/b\n").link_flags(), "-s -w");
    }
}
