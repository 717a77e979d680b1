use serde_json::{Value, json};

use super::*;
use crate::cluster::fake_api::{Answer, FakeApi};
use crate::cluster::subnets::fading::GRACE;
use crate::cluster::subnets::tests::{CIDRS, NODES, PODS, SERVICES, fixture, list, nets, pod};
use crate::cluster::subnets::{Mode, find};

fn node(name: &str, version: &str, range: &str) -> Value {
    let metadata = json!({"name": name, "resourceVersion": version});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDR": range}})
}

fn watching(script: Vec<Answer>) -> Vec<Answer> {
    let told = [
        Answer::ok(CIDRS, fixture("servicecidrs-1.36.json")),
        Answer::watch(CIDRS, Vec::new(), true),
        Answer::ok(NODES, list("5", &[node("a", "4", "10.244.0.0/24")])),
    ];
    told.into_iter().chain(script).collect()
}

/// The pod ranges that come next.
async fn next(watch: &mut Watch) -> Vec<IpNet> {
    let services = nets(&["10.96.0.0/12", "fd00:10:96::/112"]);
    watch.next().await.into_iter().filter(|net| !services.contains(net)).collect()
}

fn asked(api: &FakeApi) -> Vec<String> {
    api.asked().into_iter().map(|asked| asked.line).filter(|line| line.starts_with(NODES)).collect()
}

#[tokio::test]
async fn a_new_node_appears_and_a_burst_is_one_change() {
    let events = vec![
        ("ADDED", node("b", "6", "10.244.2.0/24")),
        ("MODIFIED", node("a", "7", "10.244.0.0/24")),
        ("ADDED", node("c", "8", "10.244.4.0/24")),
    ];
    let api = FakeApi::start(watching(vec![Answer::watch(NODES, events, true)])).await;
    let mut watch = find(&api.cluster, Mode::Ranges).await.unwrap().watch;
    assert_eq!(next(&mut watch).await, nets(&["10.244.0.0/24", "10.244.2.0/24", "10.244.4.0/24"]));
    assert!(asked(&api)[1].contains("resourceVersion=5"), "{:?}", asked(&api));
}

#[tokio::test]
async fn what_is_too_old_is_listed_again() {
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version"});
    for expired in [
        Answer::watch(NODES, vec![("ERROR", gone)], false),
        Answer::refusal(NODES, 410, "Expired", "too old resource version"),
    ] {
        let api = FakeApi::start(watching(vec![
            expired,
            Answer::ok(NODES, list("9", &[node("b", "8", "10.244.2.0/24")])),
            Answer::watch(NODES, vec![("ADDED", node("c", "10", "10.244.4.0/24"))], true),
        ]))
        .await;
        let mut watch = find(&api.cluster, Mode::Ranges).await.unwrap().watch;
        // The first is gone and still in its grace. Both changes may have come as one.
        let mut ranges = next(&mut watch).await;
        if ranges.len() == 2 {
            ranges = next(&mut watch).await;
        }
        assert_eq!(ranges, nets(&["10.244.0.0/24", "10.244.2.0/24", "10.244.4.0/24"]));
        assert!(asked(&api)[3].contains("resourceVersion=9"), "{:?}", asked(&api));
    }
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_where_it_was() {
    let api = FakeApi::start(watching(vec![
        Answer::watch(NODES, vec![("ADDED", node("b", "6", "10.244.2.0/24"))], false),
        Answer::watch(NODES, vec![("ADDED", node("c", "7", "10.244.4.0/24"))], true),
    ]))
    .await;
    let mut watch = find(&api.cluster, Mode::Ranges).await.unwrap().watch;
    assert_eq!(next(&mut watch).await, nets(&["10.244.0.0/24", "10.244.2.0/24"]));
    assert_eq!(next(&mut watch).await, nets(&["10.244.0.0/24", "10.244.2.0/24", "10.244.4.0/24"]));
    assert!(asked(&api)[2].contains("resourceVersion=6"), "nothing is listed: {:?}", asked(&api));
}

/// Who may list but not watch is served by lists.
#[tokio::test]
async fn a_watch_that_is_forbidden_is_replaced_by_lists() {
    let refused = "nodes is forbidden: User \"eve\" cannot watch resource \"nodes\" in API group \"\" at the cluster scope";
    let api = FakeApi::start(watching(vec![
        Answer::refusal(NODES, 403, "Forbidden", refused),
        Answer::ok(NODES, list("9", &[node("b", "8", "10.244.2.0/24")])),
    ]))
    .await;
    let mut watch = find(&api.cluster, Mode::Ranges).await.unwrap().watch;
    assert_eq!(next(&mut watch).await, nets(&["10.244.0.0/24", "10.244.2.0/24"]));
}

#[tokio::test]
async fn narrow_follows_pods() {
    let slices = "GET /apis/discovery.k8s.io/v1/endpointslices?";
    let api = FakeApi::start([
        Answer::ok(SERVICES, list("1", &[])),
        Answer::ok(PODS, list("1", &[pod("a", "10.244.0.4")])),
        Answer::ok(NODES, list("1", &[])),
        Answer::ok(slices, list("1", &[])),
        Answer::watch(
            PODS,
            vec![("DELETED", pod("a", "10.244.0.4")), ("ADDED", pod("b", "10.244.0.9"))],
            true,
        ),
    ])
    .await;
    let mut watch = find(&api.cluster, Mode::Narrow).await.unwrap().watch;
    assert_eq!(watch.ranges(), nets(&["10.244.0.4/32"]));
    assert_eq!(watch.next().await, nets(&["10.244.0.4/32", "10.244.0.9/32"]), "the old one is in its grace");
}

/// One that hears what the test says, of one source.
fn by_hand(first: &[(&str, &str)]) -> (Watch, mpsc::Sender<News>) {
    let mut watch = Watch::start(Vec::new(), Vec::new());
    let said = |address: &str| Said { inside: nets(&[address]), nodes: Vec::new() };
    watch.sayings.push(first.iter().map(|(name, address)| ((*name).to_owned(), said(address))).collect());
    watch.last = watch.put_together();
    let sender = watch.sender.clone();
    (watch, sender)
}

async fn say(sender: &mpsc::Sender<News>, change: Change) {
    sender.send(News { at: 0, change }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_loses_nothing() {
    let (mut watch, sender) = by_hand(&[("a", "10.0.0.1")]);
    say(&sender, Change::Says("b".into(), Said { inside: nets(&["10.0.0.4"]), nodes: Vec::new() })).await;
    let given_up = timeout(COALESCE / 2, watch.next()).await;
    assert!(given_up.is_err(), "it waits for more that comes at once");
    assert_eq!(watch.next().await, nets(&["10.0.0.1/32", "10.0.0.4/32"]));
}

#[tokio::test(start_paused = true)]
async fn what_vanished_goes_after_its_grace() {
    let (mut watch, sender) = by_hand(&[("a", "10.0.0.1"), ("b", "10.0.0.4")]);
    let start = Instant::now();
    say(&sender, Change::Gone("b".into())).await;
    assert_eq!(watch.next().await, nets(&["10.0.0.1/32"]));
    assert!(start.elapsed() >= GRACE);
    let quiet = timeout(GRACE * 10, watch.next()).await;
    assert!(quiet.is_err(), "nothing changes any more");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_becomes_a_nodes_goes_at_once() {
    let (mut watch, sender) = by_hand(&[("a", "10.0.0.1"), ("b", "10.0.0.4")]);
    let start = Instant::now();
    let node = Said { inside: Vec::new(), nodes: vec!["10.0.0.4".parse().unwrap()] };
    say(&sender, Change::Says("node".into(), node)).await;
    assert_eq!(watch.next().await, nets(&["10.0.0.1/32"]));
    assert!(start.elapsed() < GRACE);
}

#[tokio::test(start_paused = true)]
async fn what_says_the_same_again_changes_nothing() {
    let (mut watch, sender) = by_hand(&[("a", "10.0.0.1")]);
    say(&sender, Change::Says("a".into(), Said { inside: nets(&["10.0.0.1"]), nodes: Vec::new() })).await;
    say(&sender, Change::Gone("never seen".into())).await;
    say(&sender, Change::Says("nothing".into(), Said::default())).await;
    assert!(timeout(GRACE, watch.next()).await.is_err());
    assert_eq!(watch.due, None);
}

#[tokio::test(start_paused = true)]
async fn more_than_can_be_redirected_is_not_yielded_until_it_is_less() {
    let (mut watch, sender) = by_hand(&[("a", "10.0.0.1")]);
    let many = (0..=MAX_INCLUDE).map(|i| format!("10.1.{}.{}", i / 128, i % 128 * 2)).collect::<Vec<_>>();
    let inside = many.iter().flat_map(|address| nets(&[address])).collect();
    say(&sender, Change::Says("b".into(), Said { inside, nodes: Vec::new() })).await;
    assert!(timeout(GRACE, watch.next()).await.is_err());
    assert_eq!(watch.ranges(), nets(&["10.0.0.1/32"]));
    say(&sender, Change::Says("b".into(), Said { inside: nets(&["10.1.0.1"]), nodes: Vec::new() })).await;
    assert_eq!(watch.next().await, nets(&["10.0.0.1/32", "10.1.0.1/32"]));
}
