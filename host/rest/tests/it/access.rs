//! Who may do what: every operation, with no token, with one of each role, with a wrong one.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use tidemill_rest::Settings;
use tidemill_rest::access::{Access, Tokens};

use crate::{Answer, Cluster, operations};

const READ: &str = "reads-and-nothing-else";
const SUBMIT: &str = "submits-and-stops-jobs";
const ADMIN: &str = "deletes-what-it-likes";

fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let mut text = "tokens:\n".to_owned();
    for (role, token) in [("read", READ), ("submit", SUBMIT), ("admin", ADMIN)] {
        let file = folder.path().join(role);
        std::fs::write(&file, format!("{token}\n")).unwrap();
        text.push_str(&format!("- name: {role}er\n  role: {role}\n  token-file: {}\n", file.display()));
    }
    let file = folder.path().join("tokens.yaml");
    std::fs::write(&file, text).unwrap();
    let access = Access::Tokens(Tokens::read(&file).unwrap());
    Cluster::with(Settings { access, ..Settings::default() })
}

async fn ask(cluster: &Cluster, method: &Method, path: &str, authorization: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(path.replace("{id}", "none"));
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    cluster.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn every_operation_asks_for_a_token_and_for_a_role() {
    let cluster = cluster();
    let document = cluster.get("/api/v1/openapi.json").await.value();
    let mut asked = 0;
    for (method, path, _) in operations(&document) {
        if ["/health", "/ready"].contains(&path.as_str()) {
            assert_eq!(ask(&cluster, &method, &path, None).await.status, StatusCode::OK, "{path}");
            continue;
        }
        asked += 1;
        let refused = ask(&cluster, &method, &path, None).await;
        refused.refuses(401, "asks for a token");
        assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer realm=\"tidemill\"");
        ask(&cluster, &method, &path, Some("Bearer none-of-these-tokens")).await.refuses(401, "not one of");
        ask(&cluster, &method, &path, Some(&format!("Basic {ADMIN}"))).await.refuses(401, "bearer");
        let allowed = match method {
            Method::GET => [true, true, true],
            Method::POST => [false, true, true],
            _ => [false, false, true],
        };
        for (token, allowed) in [READ, SUBMIT, ADMIN].into_iter().zip(allowed) {
            let answer = ask(&cluster, &method, &path, Some(&format!("Bearer {token}"))).await;
            match allowed {
                true => assert!(![401, 403].contains(&answer.status.as_u16()), "{method} {path} as {token}"),
                false => answer.refuses(403, "is for the role"),
            }
            assert!(!answer.text.contains(token), "a token is in the answer: {}", answer.text);
        }
    }
    assert!(asked > 20, "only {asked} operations");
    // Also what is not there says nothing of itself.
    ask(&cluster, &Method::GET, "/api/v1/nothing", None).await.refuses(401, "asks for a token");
    assert_eq!(ask(&cluster, &Method::GET, "/docs", None).await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_tokens_other_sites_are_not_heard() {
    let cluster = Cluster::start();
    let request = Request::post("/api/v1/jobs/none/cancel").header(header::HOST, "127.0.0.1:8081");
    let request = request.header(header::ORIGIN, "https://elsewhere.example");
    cluster.send(request.body(Body::empty()).unwrap()).await.refuses(403, "pages of other sites");
}
