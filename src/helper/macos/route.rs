//! `route`: the arguments of its calls, and whether it did what was asked. Its exit code alone does not tell.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// The program.
pub const PROGRAM: &str = "/sbin/route";

/// What route did, in its words: `add net 10.96.0.0: gateway 192.168.64.2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// What was asked.
    Yes,
    /// There is a route to that subnet already (on adding), whoever's it is.
    Exists,
    /// There is no such route (on deleting).
    Missing,
}

/// Why it is not known or not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route said: {0}")]
pub struct Unclear(String);

/// Most characters of its words that go into an error.
const MOST_QUOTED: usize = 300;

/// Sends packets to this subnet to that machine.
pub fn add(net: &Ipv4Net, gateway: Ipv4Addr) -> [String; 5] {
    arguments("add", net, gateway)
}

/// Takes such a route away.
pub fn delete(net: &Ipv4Net, gateway: Ipv4Addr) -> [String; 5] {
    arguments("delete", net, gateway)
}

/// `-n`: without asking for names, which may need the very route.
fn arguments(verb: &str, net: &Ipv4Net, gateway: Ipv4Addr) -> [String; 5] {
    ["-n".into(), verb.into(), "-net".into(), net.to_string(), gateway.to_string()]
}

/// What became of [`add`], from all that route said.
///
/// # Errors
/// When it is not clear.
pub fn added(said: &str, net: &Ipv4Net, gateway: Ipv4Addr) -> Result<Done, Unclear> {
    judge("add", said, net, gateway)
}

/// What became of [`delete`], from all that route said.
///
/// # Errors
/// When it is not clear.
pub fn deleted(said: &str, net: &Ipv4Net, gateway: Ipv4Addr) -> Result<Done, Unclear> {
    judge("delete", said, net, gateway)
}

fn judge(verb: &str, said: &str, net: &Ipv4Net, gateway: Ipv4Addr) -> Result<Done, Unclear> {
    // The subnet is printed as it was written, of some versions without its length.
    let ours = [format!("{verb} net {net}: "), format!("{verb} net {}: ", net.network())];
    let rest = said
        .lines()
        .map(str::trim)
        .find_map(|line| ours.iter().find_map(|beginning| line.strip_prefix(beginning.as_str())));
    match rest {
        Some(rest) if rest == format!("gateway {gateway}") => Ok(Done::Yes),
        Some(rest) if verb == "add" && rest.ends_with("File exists") => Ok(Done::Exists),
        Some(rest) if verb == "delete" && rest.ends_with("not in table") => Ok(Done::Missing),
        _ => {
            let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(Unclear(words.chars().take(MOST_QUOTED).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 2);

    fn net() -> Ipv4Net {
        "10.96.0.0/12".parse().unwrap()
    }

    #[test]
    fn every_call_is_as_written() {
        assert_eq!(add(&net(), GATEWAY).join(" "), "-n add -net 10.96.0.0/12 192.168.64.2");
        assert_eq!(delete(&net(), GATEWAY).join(" "), "-n delete -net 10.96.0.0/12 192.168.64.2");
    }

    #[test]
    fn its_words_are_judged() {
        for (said, done) in [
            ("add net 10.96.0.0: gateway 192.168.64.2\n", Done::Yes),
            ("add net 10.96.0.0/12: gateway 192.168.64.2\n", Done::Yes),
            (
                "route: writing to routing socket: File exists\nadd net 10.96.0.0: gateway 192.168.64.2: File exists\n",
                Done::Exists,
            ),
        ] {
            assert_eq!(added(said, &net(), GATEWAY), Ok(done), "{said}");
        }
        let said = "route: writing to routing socket: not in table\ndelete net 10.96.0.0: gateway 192.168.64.2: not in table\n";
        assert_eq!(deleted(said, &net(), GATEWAY), Ok(Done::Missing));
        assert_eq!(deleted("delete net 10.96.0.0: gateway 192.168.64.2\n", &net(), GATEWAY), Ok(Done::Yes));
    }

    #[test]
    fn what_is_not_clear_is_no_success() {
        for said in [
            "",
            "add net 10.96.0.0: gateway 192.168.64.20\n",
            "add net 10.97.0.0: gateway 192.168.64.2\n",
            "add net 10.96.0.0: gateway 192.168.64.2: Network is unreachable\n",
            "delete net 10.96.0.0: gateway 192.168.64.2\n",
            "route: must be root to alter routing table\n",
        ] {
            added(said, &net(), GATEWAY).unwrap_err();
        }
        let error = added("route: must be root\nto alter\n", &net(), GATEWAY).unwrap_err();
        assert_eq!(error.to_string(), "route said: route: must be root to alter");
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(said in "(?s)(.|add net 10.96.0.0: |gateway |File exists|\n){0,30}") {
            let _ = added(&said, &net(), GATEWAY);
            let _ = deleted(&said, &net(), GATEWAY);
        }
    }
}
