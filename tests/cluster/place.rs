//! Where the pod may live, and what is said when it may not.

use std::process::{Command, Output};

use kshuttle_test_support::kshuttle::{Kshuttle, kubectl, program};

/// A `kshuttle socks` that is expected to fail at once.
fn fails(arguments: &[&str]) -> Output {
    Command::new(program("kshuttle"))
        .args(["socks", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .output()
        .unwrap()
}

fn limited() -> String {
    std::env::var("KSHUTTLE_BOX_LIMITED").expect("the box names the limited user's kubeconfig")
}

pub(crate) fn the_restricted_namespace_takes_it_from_a_limited_user() {
    for uid in [None, Some("1000680000")] {
        let kubeconfig = limited();
        let mut arguments = vec!["socks", "--listen", "127.0.0.1:0", "--kubeconfig", &kubeconfig];
        arguments.extend(uid.iter().flat_map(|uid| ["--run-as-user", *uid]));
        let kshuttle = Kshuttle::start(&arguments);
        let pod = kshuttle.pod();
        let runs_as = "jsonpath={.spec.securityContext.runAsUser} {.spec.securityContext.runAsNonRoot}";
        let runs_as = kubectl(&["-n", "locked", "get", "pod", &pod, "-o", runs_as]);
        assert_eq!(runs_as, format!("{} true", uid.unwrap_or("65532")));
        let enforced = "jsonpath={.metadata.labels.pod-security\\.kubernetes\\.io/enforce}";
        assert_eq!(kubectl(&["get", "namespace", "locked", "-o", enforced]), "restricted");
        let field = format!("involvedObject.name={pod}");
        let events = kubectl(&["-n", "locked", "get", "events", "--field-selector", &field]);
        assert!(!events.contains("Pulling") && !events.contains("Failed"), "{events}");
    }
}

pub(crate) fn an_image_serves_as_well() {
    let image = std::env::var("KSHUTTLE_TEST_IMAGE").expect("scripts/test imports the image and names it");
    let kshuttle = Kshuttle::start(&["socks", "--listen", "127.0.0.1:0", "--image", &image]);
    let volumes = kubectl(&["get", "pod", &kshuttle.pod(), "-o", "jsonpath={.spec.volumes}"]);
    assert_eq!(volumes, "", "an image needs nothing delivered");
}

pub(crate) fn missing_rights_are_named_with_the_role_to_ask_for() {
    let output = fails(&["--kubeconfig", &limited(), "-n", "shop"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    for words in ["shop", "kind: Role", "pods/portforward", "name: \"limited\""] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
}

pub(crate) fn errors_have_their_exit_codes() {
    for (arguments, code, words) in [
        (&["--context", "nonsense"][..], 3, "nonsense"),
        (&["--kubeconfig", "/nonexistent"], 3, "/nonexistent"),
        (&["-n", "no-such-namespace"], 5, "no-such-namespace"),
        (&["--carrier-image", "kshuttle.test/not-there:1"], 5, "kshuttle.test/not-there:1"),
        (&["--transport", "pigeon"], 2, "pigeon"),
    ] {
        let output = fails(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
