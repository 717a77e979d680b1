use serde_json::{Value, json};

use super::super::fake_api::{Answer, FakeApi};
use super::*;

#[test]
fn the_role_in_the_docs_is_this_one() {
    let documented = include_str!("../../../docs/role.yaml");
    let (_, yaml) = documented.split_once("\n\n").unwrap(); // after the comment
    assert_eq!(yaml, role_yaml("default", None));
}

#[test]
fn service_accounts_and_odd_names_are_written_as_what_they_are() {
    let yaml = role_yaml("prod", Some("system:serviceaccount:dev:ci"));
    assert!(yaml.ends_with("  - kind: ServiceAccount\n    name: \"ci\"\n    namespace: \"dev\"\n"), "{yaml}");
    assert!(yaml.contains("  namespace: \"prod\"\n"));
    let yaml = role_yaml("prod", Some("oidc:a\"b@example.org"));
    assert!(yaml.ends_with("kind: User\n    name: \"oidc:a\\\"b@example.org\"\n"), "{yaml}");
}

const REVIEWS: &str = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RIGHTS: usize = 10;

#[tokio::test]
async fn every_verb_is_asked_for() {
    let answer = |allowed: bool| Answer::ok(REVIEWS, json!({"spec": {}, "status": {"allowed": allowed}}));
    let who = json!({"status": {"userInfo": {"username": "jane"}}});
    let who = Answer::ok("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", who);
    let api = FakeApi::start((0..RIGHTS).map(|_| answer(false)).chain([who])).await;
    let found = review(&api.cluster, true).await.unwrap();
    assert_eq!((found.missing.len(), found.user.as_deref()), (RIGHTS, Some("jane")));
    let attributes = |asked: &Value| asked["spec"]["resourceAttributes"].clone();
    let asked: Vec<_> = api.asked().iter().map(|asked| attributes(&asked.body)).collect();
    for expected in [
        json!({"namespace": "dev", "resource": "pods", "verb": "watch"}),
        json!({"namespace": "dev", "resource": "pods", "subresource": "portforward", "verb": "create"}),
    ] {
        assert!(asked.contains(&expected), "{asked:?}");
    }
    let error = RightsError::new("dev", found, None);
    assert!(error.to_string().contains("create pods, get pods"), "{error}");
    assert!(error.role_yaml().contains("name: \"jane\""));

    // Whoever does not know who we are still tells what we may.
    let api = FakeApi::start((0..RIGHTS).map(|_| answer(true))).await;
    assert_eq!(review(&api.cluster, true).await.unwrap(), Review::default());
    // No answer is no missing right.
    let api = FakeApi::start([answer(true)]).await;
    assert!(review(&api.cluster, true).await.is_err());
}

#[test]
fn an_image_needs_no_config_maps() {
    let missing =
        vec![Right { resource: "configmaps", verb: "get" }, Right { resource: "pods", verb: "watch" }];
    let review = Review { missing, user: None };
    assert_eq!(review.clone().without_needless(true), review);
    assert_eq!(review.without_needless(false).missing, [Right { resource: "pods", verb: "watch" }]);
}
