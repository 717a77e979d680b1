//! The rights kshuttle needs, as the Role to ask an administrator for. One namespace, nothing cluster-wide.

use std::fmt::Write;

/// What is needed of each resource, and what for.
const RULES: [(&str, &[&str], &str); 3] = [
    ("pods", &["create", "get", "list", "watch", "delete"], "the pod that kshuttle starts, and finds again"),
    // `create` is what the SPDY request needs, `get` the WebSocket request, and that from Kubernetes 1.35 on both.
    ("pods/portforward", &["get", "create"], "the connection to that pod"),
    ("configmaps", &["create", "get"], "the program that the pod runs; not needed with --image"),
];

/// Role and RoleBinding for `namespace` in YAML. `user` is who we are to the cluster, as its error messages
/// name it; a `system:serviceaccount:…` becomes a ServiceAccount. Without it a placeholder stands there.
pub fn role_yaml(namespace: &str, user: Option<&str>) -> String {
    let mut yaml = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: Role\n\
         metadata:\n\
         \x20 name: kshuttle\n\
         \x20 namespace: {}\n\
         rules:\n",
        quote(namespace)
    );
    for (resource, verbs, purpose) in RULES {
        let _ = write!(
            yaml,
            "\x20 # {purpose}\n\
             \x20 - apiGroups: [\"\"]\n\
             \x20   resources: [{}]\n\
             \x20   verbs: [{}]\n",
            quote(resource),
            verbs.iter().map(|verb| quote(verb)).collect::<Vec<_>>().join(", ")
        );
    }
    let _ = write!(
        yaml,
        "---\n\
         apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: RoleBinding\n\
         metadata:\n\
         \x20 name: kshuttle\n\
         \x20 namespace: {}\n\
         roleRef:\n\
         \x20 apiGroup: rbac.authorization.k8s.io\n\
         \x20 kind: Role\n\
         \x20 name: kshuttle\n\
         subjects:\n{}",
        quote(namespace),
        subject(user.unwrap_or("WHO-USES-IT"))
    );
    yaml
}

fn subject(user: &str) -> String {
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => format!(
            "\x20 - kind: ServiceAccount\n\x20   name: {}\n\x20   namespace: {}\n",
            quote(name),
            quote(namespace)
        ),
        None => format!(
            "\x20 - apiGroup: rbac.authorization.k8s.io\n\x20   kind: User\n\x20   name: {}\n",
            quote(user)
        ),
    }
}

/// A YAML string in double quotes, which are those of JSON.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_in_the_docs_is_this_one() {
        let documented = include_str!("../../docs/role.yaml");
        let (_, yaml) = documented.split_once("\n\n").unwrap(); // after the comment
        assert_eq!(yaml, role_yaml("default", None));
    }

    #[test]
    fn service_accounts_and_odd_names_are_written_as_what_they_are() {
        let yaml = role_yaml("prod", Some("system:serviceaccount:dev:ci"));
        assert!(
            yaml.ends_with("  - kind: ServiceAccount\n    name: \"ci\"\n    namespace: \"dev\"\n"),
            "{yaml}"
        );
        assert!(yaml.contains("  namespace: \"prod\"\n"));
        let yaml = role_yaml("prod", Some("oidc:a\"b@example.org"));
        assert!(yaml.ends_with("kind: User\n    name: \"oidc:a\\\"b@example.org\"\n"), "{yaml}");
    }
}
