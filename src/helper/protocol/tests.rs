use super::*;
use proptest::prelude::*;

fn frame(json: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

fn read(json: &str) -> Result<Option<Request>, String> {
    let mut frames = Frames::default();
    frames.push(&frame(json));
    frames.take().map_err(|error| match error {
        Error::Malformed(cause) => cause.to_string(),
        other => other.to_string(),
    })
}

const PLAN: &str = r#"{"type":"plan","session":"a-1","method":"auto","include":["10.0.0.0/8","fd00::/8"],"exclude":["10.1.0.0/16"],"listener_v4":1024,"listener_v6":1025}"#;

fn plan() -> Plan {
    Plan {
        session: "a-1".into(),
        include: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
        exclude: vec!["10.1.0.0/16".parse().unwrap()],
        listener_v4: Some(1024),
        listener_v6: Some(1025),
        ..Plan::default()
    }
}

#[test]
fn the_words_are_these() {
    let text = |reply: &Reply| serde_json::to_string(reply).unwrap();
    assert_eq!(serde_json::to_string(&Request::Plan(plan())).unwrap(), PLAN);
    assert_eq!(serde_json::to_string(&Request::Stop {}).unwrap(), r#"{"type":"stop"}"#);
    assert_eq!(
        text(&Reply::Hello { protocol: 3, version: "0.1.0".into() }),
        r#"{"type":"hello","protocol":3,"version":"0.1.0"}"#
    );
    assert_eq!(
        text(&Reply::Ready {
            method: "nft".into(),
            table: "kshuttle_a-1".into(),
            notes: vec![],
            datagram_seconds: [61, 185]
        }),
        r#"{"type":"ready","method":"nft","table":"kshuttle_a-1","notes":[],"datagram_seconds":[61,185]}"#
    );
    assert_eq!(
        text(&Reply::Failed { step: "plan".into(), message: "session: …".into() }),
        r#"{"type":"failed","step":"plan","message":"session: …"}"#
    );
    assert_eq!(
        serde_json::to_string(&Request::Origin {
            from: "127.0.0.1:5".parse().unwrap(),
            at: "127.0.0.1:6".parse().unwrap()
        })
        .unwrap(),
        r#"{"type":"origin","from":"127.0.0.1:5","at":"127.0.0.1:6"}"#
    );
    let link = Link { port_v4: Some(5), port_v6: None, domains: vec!["svc".into()], search: vec![] };
    assert_eq!(
        serde_json::to_string(&Request::Link(link)).unwrap(),
        r#"{"type":"link","port_v4":5,"port_v6":null,"domains":["svc"],"search":[]}"#
    );
    let servers = vec![NameServer { address: "::1".parse().unwrap(), port: 5 }];
    assert_eq!(
        serde_json::to_string(&Request::Names { servers }).unwrap(),
        r#"{"type":"names","servers":[{"address":"::1","port":5}]}"#
    );
    assert_eq!(
        serde_json::to_string(&Request::Sockets { v6: false, stream: true, count: 4 }).unwrap(),
        r#"{"type":"sockets","v6":false,"stream":true,"count":4}"#
    );
    assert_eq!(text(&Reply::Sockets { count: 4 }), r#"{"type":"sockets","count":4}"#);
    assert_eq!(
        text(&Reply::Origin { from: "[::1]:5".parse().unwrap(), to: None }),
        r#"{"type":"origin","from":"[::1]:5","to":null}"#
    );
    let failures = vec![StepFailure { step: "wait".into(), message: "m".into() }];
    assert_eq!(
        text(&Reply::Stopped { report: UndoReport { failures, ..UndoReport::default() } }),
        concat!(
            r#"{"type":"stopped","report":{"waited_ms":0,"still_open":0,"entries_deleted":0,"guard_dropped":0,"#,
            r#""failures":[{"step":"wait","message":"m"}]}}"#
        )
    );
}

#[test]
fn what_is_not_known_is_refused() {
    for (json, says) in [
        (r#"{"type":"stop","x":1}"#, "unknown field `x`"),
        (r#"{"type":"run","command":"sh"}"#, "unknown variant `run`"),
        (r#"{"type":"plan","session":"a","include":[],"command":"sh"}"#, "unknown field `command`"),
        (r#"{"session":"a","include":[]}"#, "missing field `type`"),
        (r#"{"type":"plan","include":[]}"#, "missing field `session`"),
        (r#"{"type":"link","domains":["svc"],"server":"192.0.2.1"}"#, "unknown field `server`"),
        (r#"{"type":"link","port_v4":65536}"#, "port_v4: "),
        ("[]", "missing field `type`"),
        (r#"{"type":"names","servers":[{"address":"fe80::1%1","port":5}]}"#, "servers: "),
        (r#"{"type":"names","servers":[{"address":"::1","port":5,"x":1}]}"#, "unknown field `x`"),
        (r#"{"type":"sockets","v6":false,"stream":false,"count":256}"#, "expected u8"),
        ("", "EOF"),
        (r#"{"type":"stop"} x"#, "trailing characters"),
    ] {
        let error = read(json).unwrap_err();
        assert!(error.contains(says), "{json}: {error}");
    }
}

#[test]
fn a_wrong_value_names_its_field() {
    for (field, value) in [
        ("session", "7"),
        ("include", r#"["10.0.0.0/33"]"#),
        ("include", r#"["10.0.0.0/8; flush ruleset"]"#),
        ("exclude", r#""10.0.0.0/8""#),
        ("listener_v4", "65536"),
        ("listener_v6", "-1"),
    ] {
        let mut plan: serde_json::Value = serde_json::from_str(PLAN).unwrap();
        plan[field] = serde_json::from_str(value).unwrap();
        let error = read(&plan.to_string()).unwrap_err();
        assert!(error.starts_with(&format!("{field}: ")), "{error}");
    }
}

#[test]
fn the_largest_plan_fits() {
    let subnet: IpNet = "1111:2222:3333:4444:5555:6666:7777:8888/128".parse().unwrap();
    let plan = Plan {
        session: "x".repeat(32),
        include: vec![subnet; crate::plan::MAX_INCLUDE],
        exclude: vec![subnet; crate::plan::MAX_EXCLUDE],
        ..plan()
    };
    write(&mut Vec::new(), &Request::Plan(plan)).unwrap();
}

proptest! {
    #[test]
    fn hostile_json_never_panics(json in r#"\{("type":"(plan|stop)"|"include":\[("[0-9a-f:./]{0,20}",?){0,3}\]|"session":"[a-z;{}]{0,9}"|"listener_v4":[0-9]{0,7}|,){0,9}\}"#) {
        let mut frames = Frames::default();
        frames.push(&frame(&json));
        if let Ok(Some(Request::Plan(plan))) = frames.take::<Request>() {
            let _ = crate::plan::Plan::check(plan);
        }
    }
}
