//! A plan comes from a component and may be wrong in any way; each wrong one is refused with the operator and the fault.
#![allow(clippy::expect_used, reason = "a failed test is what it means here")]

use serde_json::{Value, json};
use tidemill_core::graph::JobGraph;
use tidemill_core::plan::{Exchange, NodeKind, Origin, Plan};

fn field(name: &str, data_type: &str) -> Value {
    json!({"field": {"name": name, "data_type": data_type}, "origin": "new"})
}

fn from_input(name: &str, data_type: &str, input: u32, column: u32) -> Value {
    json!({"field": {"name": name, "data_type": data_type}, "origin": {"input": {"input": input, "column": column}}})
}

fn bids() -> Value {
    json!({
        "uid": "bids", "name": "bids", "kind": {"source": {"binding": "bids", "event_time": {"column": 3}}},
        "outputs": [{"name": "main", "fields": [
            field("auction", "int64"), field("bidder", "int64"), field("channel", "utf8"), field("date_time", "timestamp")
        ]}]
    })
}

fn window() -> Value {
    json!({
        "uid": "counts", "name": "counts",
        "kind": {"window": {
            "windows": {"tumbling": {"size_ms": 1000}},
            "aggregates": [{"name": "max", "function": {"max": 1}}]
        }},
        "inputs": [{"node": 0, "port": 0, "exchange": {"hash": [0]}}],
        "outputs": [{"name": "main", "fields": [
            from_input("auction", "int64", 0, 0),
            {"field": {"name": "max", "data_type": "int64"}, "origin": {"aggregate": 0}},
            {"field": {"name": "end", "data_type": "timestamp"}, "origin": "window_end"}
        ]}]
    })
}

fn filter() -> Value {
    json!({
        "uid": "filter", "name": "filter", "parallelism": null, "kind": {"transform": {}},
        "inputs": [{"node": 1, "exchange": "forward", "reads": [1]}],
        "outputs": [{"name": "main", "fields": [from_input("auction", "int64", 0, 0)]}]
    })
}

fn sink(node: u32) -> Value {
    json!({"uid": "out", "name": "out", "kind": {"sink": {"binding": "out"}}, "inputs": [{"node": node, "exchange": "forward"}]})
}

fn plan() -> Value {
    json!({"version": 1, "name": "job", "nodes": [bids(), window(), filter(), sink(2)]})
}

fn graph(plan: Value) -> Result<JobGraph, String> {
    let plan: Plan = serde_json::from_value(plan).expect("a plan by its shape");
    JobGraph::from_plan(plan).map_err(|e| e.to_string())
}

/// Puts `value` at the JSON pointer and checks that the plan is refused, with the operator and these words.
#[track_caller]
fn refused(pointer: &str, value: Value, operator: &str, words: &str) {
    let mut plan = plan();
    *plan.pointer_mut(pointer).expect("the pointer leads somewhere") = value;
    let error = graph(plan).expect_err("the plan is wrong");
    assert!(error.contains(operator) && error.contains(words), "{error}");
}

#[test]
fn a_good_plan_is_accepted() {
    assert_eq!(graph(plan()).unwrap().nodes().len(), 4);
}

#[test]
fn wrong_plans_are_refused_with_the_operator_and_the_fault() {
    refused("/version", json!(7), "", "version 7");
    refused("/name", json!("a\nb"), "", "control characters");
    refused("/nodes", json!([]), "", "0 nodes");
    refused("/nodes/1/uid", json!("bids"), "bids", "two operators");
    refused("/nodes/1/inputs/0/node", json!(2), "counts", "does not come before it");
    refused("/nodes/1/inputs/0/port", json!(4), "counts", "port 4");
    refused("/nodes/1/inputs/0/exchange", json!("forward"), "counts", "hashed by key");
    refused("/nodes/1/inputs/0/exchange", json!({"hash": [9]}), "counts", "column 9");
    refused("/nodes/1/kind/window/windows/tumbling/size_ms", json!(0), "counts", "above 0");
    refused("/nodes/1/kind/window/windows", json!({"sliding": {"size_ms": 10, "slide_ms": 3}}), "counts", "multiple");
    refused("/nodes/1/kind/window/aggregates/0/function", json!({"sum": 2}), "counts", "does not fit");
    refused("/nodes/1/outputs/0/fields/1/field/data_type", json!("float64"), "counts", "declared as float64");
    refused("/nodes/1/outputs/0/fields/0/origin/input/column", json!(1), "counts", "not part of the key");
    refused("/nodes/1/outputs/0/fields/1/field/name", json!("auction"), "counts", "named 'auction'");
    refused("/nodes/2/inputs/0/reads", json!([3]), "filter", "reads column 3");
    refused("/nodes/2/parallelism", json!(0), "filter", "parallelism is 0");
    refused("/nodes/0/kind/source/event_time/column", json!(0), "bids", "a timestamp is needed");
    refused("/nodes/3/inputs", json!([]), "out", "0 inputs");
}

fn process(states: Value) -> Result<JobGraph, String> {
    let process = json!({
        "uid": "watch", "name": "watch", "kind": {"process": {"states": states}},
        "inputs": [{"node": 0, "exchange": {"hash": [0]}, "reads": [0]}],
        "outputs": [{"name": "main", "fields": [field("n", "int64")]}]
    });
    graph(json!({"version": 1, "name": "job", "nodes": [bids(), process, sink(1)]}))
}

#[test]
fn states_of_every_kind_are_accepted_and_wrong_ones_refused() {
    let state = |name: &str, kind: Value| json!({"name": name, "kind": kind, "data_type": "int64"});
    let mut lives = state("v", json!("value"));
    lives["ttl"] = json!({"duration_ms": 5, "update": "on_read_and_write"});
    process(json!([lives, state("l", json!("list")), state("m", json!({"map": {"key": "utf8"}}))])).unwrap();
    let refused = |states: Value, words: &str| {
        let error = process(states).expect_err("a state is wrong");
        assert!(error.contains("watch") && error.contains(words), "{error}");
    };
    for kind in [json!("list"), json!({"map": {"key": "utf8"}})] {
        let mut state = state("l", kind);
        state["ttl"] = json!({"duration_ms": 5});
        refused(json!([state]), "state 'l' is no value");
    }
    for ms in [0, u64::MAX] {
        let mut state = state("v", json!("value"));
        state["ttl"] = json!({"duration_ms": ms});
        refused(json!([state]), &format!("time-to-live of {ms} ms"));
    }
    refused(json!([lives, state("v.last_access", json!("value"))]), "two states are named 'v.last_access'");
    refused(json!([state("v", json!("list")), state("v", json!("value"))]), "two states are named 'v'");
}

#[test]
fn broadcast_state_needs_a_broadcast_input_and_stands_behind_the_others() {
    let inputs = |first: Value, second: Value| json!([{"node": 0, "exchange": first, "reads": [0]}, {"node": 1, "exchange": second, "reads": [2]}]);
    let plan = |inputs: Value, states: Value| {
        let mut rules = bids();
        rules["uid"] = json!("rules");
        let process = json!({
            "uid": "watch", "name": "watch", "kind": {"process": {"states": states}}, "inputs": inputs,
            "outputs": [{"name": "main", "fields": [field("n", "int64")]}]
        });
        graph(json!({"version": 1, "name": "job", "nodes": [bids(), rules, process, sink(2)]}))
    };
    let (hash, broadcast) = (json!({"hash": [0]}), json!("broadcast"));
    let rules = |key: Value| json!({"name": "rules", "kind": {"broadcast": {"key": key}}, "data_type": "int64"});
    let value = json!({"name": "v", "kind": "value", "data_type": "int64"});
    let text = rules(json!("utf8"));
    for first in [&hash, &broadcast, &json!("forward"), &json!("rebalance")] {
        plan(inputs(first.clone(), broadcast.clone()), json!([text])).unwrap();
    }
    plan(inputs(broadcast.clone(), hash.clone()), json!([value, text])).unwrap();
    let refused = |first: &Value, second: &Value, states: Value, words: &str| {
        let error = plan(inputs(first.clone(), second.clone()), states).expect_err("it is wrong");
        assert!(error.contains("watch") && error.contains(words), "{error}");
    };
    refused(&hash, &hash, json!([text]), "'rules' is changed by rows of a broadcast input, and it has none");
    refused(&hash, &broadcast, json!([text, value]), "must come behind the others");
    refused(
        &json!("forward"),
        &broadcast,
        json!([value, text]),
        "'v' belongs to a key, and none of its inputs is hashed",
    );
    refused(&json!("forward"), &hash, json!([value]), "each of its inputs must be hashed by key");
    refused(&json!("forward"), &json!("rebalance"), json!([]), "each of its inputs must be hashed by key");
    refused(&hash, &broadcast, json!([rules(json!("float64"))]), "which can't be a key");
    let mut lives = text.clone();
    lives["ttl"] = json!({"duration_ms": 5});
    refused(&hash, &broadcast, json!([lives]), "state 'rules' is no value");
}

#[test]
fn an_operator_list_belongs_to_a_node_without_a_key() {
    let plan = |inputs: Value, states: Value| {
        let process = json!({
            "uid": "buffer", "name": "buffer", "kind": {"process": {"states": states}}, "inputs": inputs,
            "outputs": [{"name": "main", "fields": [field("n", "int64")]}]
        });
        let mut other = bids();
        other["uid"] = json!("other");
        graph(json!({"version": 1, "name": "job", "nodes": [bids(), other, process, sink(2)]}))
    };
    let input = |node: u32, exchange: Value| json!({"node": node, "exchange": exchange, "reads": [0]});
    let list = |name: &str, redistribution: &str| {
        let kind = json!({"operator_list": {"redistribution": redistribution}});
        json!({"name": name, "kind": kind, "data_type": "int64"})
    };
    let (hash, broadcast, forward) = (json!({"hash": [0]}), json!("broadcast"), json!("forward"));
    let rules = json!({"name": "rules", "kind": {"broadcast": {"key": "utf8"}}, "data_type": "int64"});
    let value = json!({"name": "v", "kind": "value", "data_type": "int64"});
    let both = json!([list("held", "split"), list("known", "union")]);
    for exchange in [&forward, &json!("rebalance")] {
        plan(json!([input(0, exchange.clone())]), both.clone()).unwrap();
        plan(json!([input(0, exchange.clone())]), json!([])).unwrap();
    }
    let two = json!([input(0, forward.clone()), input(1, broadcast.clone())]);
    plan(two.clone(), json!([rules, list("held", "split")])).unwrap();
    plan(two.clone(), json!([list("held", "split"), rules])).unwrap();
    let refused = |inputs: Value, states: Value, words: &str| {
        let error = plan(inputs, states).expect_err("it is wrong");
        assert!(error.contains("buffer") && error.contains(words), "{error}");
    };
    let keyed = json!([input(0, hash.clone())]);
    refused(keyed, json!([list("held", "split")]), "state 'held' is an operator list, which belongs to a subtask");
    let keyed = json!([input(0, hash), input(1, broadcast)]);
    refused(
        keyed,
        json!([value, list("held", "union")]),
        "keep a list of each key, or do this in a process function before",
    );
    refused(
        json!([input(0, forward.clone())]),
        json!([value]),
        "'v' belongs to a key, and none of its inputs is hashed",
    );
    let united = json!([input(0, forward.clone()), input(1, forward.clone())]);
    refused(united, json!([list("held", "split")]), "each of its inputs must be hashed by key");
    let mut lives = list("held", "split");
    lives["ttl"] = json!({"duration_ms": 5});
    refused(json!([input(0, forward.clone())]), json!([lives]), "state 'held' is no value");
    let twice = json!([list("held", "split"), list("held", "union")]);
    refused(json!([input(0, forward.clone())]), twice, "two states are named 'held'");
    let odd = serde_json::from_value::<tidemill_core::plan::State>(list("held", "by luck")).unwrap_err().to_string();
    assert!(odd.contains("unknown variant `by luck`"), "{odd}");
}

#[test]
fn a_type_nested_too_deep_is_refused() {
    let mut deep = json!("int64");
    for _ in 0..20 {
        deep = json!({"list": {"name": "item", "data_type": deep}});
    }
    refused("/nodes/0/outputs/0/fields/2/field/data_type", deep, "bids", "nested deeper");
}

#[test]
fn columns_that_nobody_reads_are_not_even_produced() {
    let pruned = graph(plan()).unwrap().prune();
    let names = |node: usize| -> Vec<&str> {
        pruned.nodes()[node].outputs[0].fields.iter().map(|f| f.field.name.as_str()).collect()
    };
    assert_eq!(names(0), ["auction", "bidder", "date_time"], "the channel is read by nobody");
    assert_eq!(names(1), ["auction", "max"], "nor is the window's end");
    let NodeKind::Source { event_time: Some(event_time), .. } = &pruned.nodes()[0].kind else { panic!() };
    assert_eq!(event_time.column, 2, "moved with its column");
    assert_eq!(pruned.nodes()[1].inputs[0].exchange, Exchange::Hash(vec![0]));
    assert_eq!(pruned.nodes()[2].inputs[0].reads, [1]);
    assert_eq!(pruned.nodes()[2].outputs[0].fields[0].origin, Origin::Input { input: 0, column: 0 });
}

/// Regression: the inputs of a union are pruned apart when something else reads more of one of them.
#[test]
fn a_union_reads_the_right_columns_of_each_input() {
    let source = |uid: &str| {
        let mut node = bids();
        node["uid"] = json!(uid);
        node["kind"]["source"]["event_time"] = Value::Null;
        node
    };
    let union = json!({
        "uid": "union", "name": "union", "kind": "union",
        "inputs": [{"node": 0, "exchange": "forward"}, {"node": 1, "exchange": "forward"}],
        "outputs": [{"name": "main", "fields": [
            from_input("auction", "int64", 0, 0), from_input("bidder", "int64", 0, 1),
            from_input("channel", "utf8", 0, 2), from_input("date_time", "timestamp", 0, 3)
        ]}]
    });
    let reader = |uid: &str, node: u32, column: u32, data_type: &str| {
        json!({
            "uid": uid, "name": uid, "kind": {"transform": {}},
            "inputs": [{"node": node, "exchange": "forward", "reads": []}],
            "outputs": [{"name": "main", "fields": [from_input("kept", data_type, 0, column)]}]
        })
    };
    let out = |uid: &str, node: u32| {
        let mut sink = sink(node);
        sink["uid"] = json!(uid);
        sink
    };
    let nodes = json!([
        source("a"),
        source("b"),
        union,
        reader("channels", 2, 2, "utf8"),
        out("x", 3),
        reader("auctions", 0, 0, "int64"),
        out("y", 5)
    ]);
    let pruned = graph(json!({"version": 1, "name": "job", "nodes": nodes})).unwrap().prune();
    let union = &pruned.nodes()[2];
    assert_eq!(union.inputs[0].reads, [1], "the first input also keeps the auction, for another reader");
    assert_eq!(union.inputs[1].reads, [0]);
}
