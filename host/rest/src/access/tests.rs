use axum::http::HeaderValue;

use super::*;

const MISPLACED: &str = "5b4f1ae7d7cc0ed9ee2d4d1a1a2a3e5a";

fn tokens(text: &str) -> Result<Tokens> {
    Tokens::parse(text, &|name| (name == "ADA").then(|| "ada has a long token".to_owned()))
}

fn message(text: &str) -> String {
    tokens(text).unwrap_err().to_string()
}

#[test]
fn files_that_say_too_little_or_too_much_are_refused() {
    assert!(message("tokens: []").contains("there is no token"));
    assert!(message("token: []").contains("unknown field"));
    assert!(message("tokens: [{name: x, role: read}]").contains("token 'x': it needs one of"));
    assert!(message("tokens: [{name: x, role: king, token-env: ADA}]").contains("king"));
    assert!(message("tokens: [{name: x, role: read, sha256: abc}]").contains("64 hexadecimal digits"));
    assert!(message("tokens: [{name: x, role: read, token-env: BOB}]").contains("no environment variable BOB"));
    let twice = "tokens: [{name: x, role: read, token-env: ADA}, {name: y, role: admin, token-env: ADA}]";
    assert!(message(twice).contains("token 'y' is there twice"));
}

#[test]
fn no_token_comes_into_a_message() {
    let misplaced = format!("tokens: [{{name: x, role: read, token: {MISPLACED}}}]");
    assert!(!message(&misplaced).contains(MISPLACED), "{}", message(&misplaced));
    let ada = tokens("tokens: [{name: ada, role: read, token-env: ADA}]").unwrap();
    assert_eq!(format!("{ada:?}"), r#"["ada (read)"]"#);
}

#[test]
fn a_token_is_found_by_its_digest_and_by_its_variable() {
    let sha: String = digest("bob has a long token").iter().map(|byte| format!("{byte:02x}")).collect();
    let text =
        format!("tokens: [{{name: ada, role: admin, token-env: ADA}}, {{name: bob, role: read, sha256: {sha}}}]");
    let tokens = tokens(&text).unwrap();
    let name = |token| tokens.find(token).map(|of| of.name.as_str());
    assert_eq!(name("ada has a long token"), Some("ada"));
    assert_eq!(name("bob has a long token"), Some("bob"));
    assert_eq!(name("bob has a long token "), None);
    assert_eq!(name(""), None);
}

#[test]
fn without_tokens_pages_of_other_sites_are_not_heard() {
    let decide = |pairs: &[(header::HeaderName, &'static str)]| {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        decide(&Access::Local, &Method::POST, "/api/v1/jobs", &headers).is_ok()
    };
    assert!(decide(&[]));
    assert!(decide(&[(header::HOST, "127.0.0.1:8081")]));
    assert!(decide(&[(header::HOST, "[::1]:8081")]));
    assert!(decide(&[(header::HOST, "localhost:8081"), (header::ORIGIN, "http://localhost:8081")]));
    assert!(!decide(&[(header::HOST, "evil.example:8081")]), "a name that was made to lead here");
    assert!(!decide(&[(header::HOST, "127.0.0.1:8081"), (header::ORIGIN, "http://evil.example")]));
    assert!(!decide(&[(header::HOST, "127.0.0.1:8081"), (header::ORIGIN, "null")]));
}
