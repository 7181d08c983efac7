//! `GET /v1/models` and `GET /v1/models/{id}` of the real binary with the demo model.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "common/process.rs"]
mod process;

use process::Running;
use serde_json::{Value, json};

fn json_of(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn the_model_is_listed_and_found_by_its_name_alone() {
    let server = Running::start_ready(&["--ctx", "1024", "--model-name", "org/my model"]);
    let list = json_of(&server.get("/v1/models"));
    assert_eq!((&list["object"], list["data"].as_array().unwrap().len()), (&json!("list"), 1));
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!("org/my model"), &json!("model")));
    assert_eq!(model["max_model_len"], 1024);
    assert_eq!(json_of(&server.get("/v1/models/org%2Fmy%20model")), *model);
    let missing = server.get("/v1/models/demo");
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    assert_eq!(json_of(&missing)["error"]["code"], "model_not_found");
}
