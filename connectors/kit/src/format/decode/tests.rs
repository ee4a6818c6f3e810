use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int8Type, Int64Type, Schema, TimeUnit, TimestampMillisecondType};

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8View, true),
        Field::new("share", DataType::Float64, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("small", DataType::Int8, true),
        Field::new("ok", DataType::Boolean, true),
    ]))
}

fn format(options: &str) -> DecodeFormat {
    let options = Options::parse("source 'x'", &DecodeFormat::options(), &options.parse().unwrap()).unwrap();
    DecodeFormat::from_options(&options, None).unwrap()
}

/// Decodes in batches of `max_rows`: one line of text per row, then what was rejected.
fn decode_by(options: &str, text: &[u8], header: Option<&[u8]>, max_rows: usize) -> Result<String> {
    let schema = schema();
    let mut decoder = format(options).decoder("file 'f'".to_owned(), &schema, &schema, header)?;
    let chunk = Chunk::new(text.to_vec(), 100, 7);
    let (mut cursor, mut out) = (Cursor::default(), String::new());
    while cursor.at < text.len() {
        let Decoded { batch, rejects } = decoder.decode(&chunk, &mut cursor, max_rows)?;
        let columns = batch.columns();
        for row in 0..batch.rows() {
            let cell = |i: usize, text: String| if columns[i].is_null(row) { "null".to_owned() } else { text };
            let cells = [
                cell(0, columns[0].as_primitive::<Int64Type>().value(row).to_string()),
                cell(1, columns[1].as_string_view().value(row).to_owned()),
                cell(2, columns[2].as_primitive::<Float64Type>().value(row).to_string()),
                cell(3, columns[3].as_primitive::<TimestampMillisecondType>().value(row).to_string()),
                cell(4, columns[4].as_primitive::<Int8Type>().value(row).to_string()),
                cell(5, columns[5].as_boolean().value(row).to_string()),
            ];
            out.push_str(&cells.join(" "));
            out.push('\n');
        }
        for letter in rejects.letters {
            out.push_str(&format!("{} <{}>\n", letter.reason, letter.record));
        }
        if rejects.skipped > 0 {
            out.push_str(&format!("skipped {}\n", rejects.skipped));
        }
    }
    Ok(out)
}

/// The same whatever the batches are, but for the place of the rejected between the rows.
fn decode(options: &str, text: impl AsRef<[u8]>, header: Option<&[u8]>) -> String {
    let out = decode_by(options, text.as_ref(), header, 1_000).unwrap();
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().filter(|l| !l.starts_with("skipped")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for max_rows in [1, 2] {
        assert_eq!(sorted(&decode_by(options, text.as_ref(), header, max_rows).unwrap()), sorted(&out));
    }
    out
}

fn json(text: impl AsRef<[u8]>) -> String {
    decode("on-error = 'dead-letter'", text, None)
}

#[test]
fn json_fields_are_found_in_any_order_and_shape() {
    let text = br#"{"id":1,"name":"a name that is long enough","share":0.5,"at":1357034400000,"small":-128,"ok":true}
{"ok":false,"small":127,"at":"2013-01-01T10:00:00Z","share":-1e3,"name":"x","id":-9223372036854775808}

 { "id" : 3 , "other" : [1, {"a" : [], "b" : {}}, "]\"", null, [[]], true], "name" : null }
{"id":4,"n\u0061me":"\u00e9\n\"\ud83d\ude00\\/ and more of it","at":null}
{}
"#;
    let expected = "1 a name that is long enough 0.5 1357034400000 -128 true\n\
                    -9223372036854775808 x -1000 1357034400000 127 false\n\
                    3 null null null null null\n\
                    4 é\n\"😀\\/ and more of it null null null null\n\
                    file 'f', line 13 (byte 469): field 'id' is missing, and its column is not nullable <{}>\n";
    assert_eq!(json(text), expected);
}

#[test]
fn one_malformed_json_record_takes_no_neighbour_with_it() {
    let cases = [
        (r#"{"id":1"#, "it ends where `,` or `}` is expected"),
        (r#"{"id":1}}"#, "byte 9 is `}` where the end of the line is expected"),
        (r#"{"id":1} {"id":2}"#, "the end of the line is expected"),
        (r#"{"id":1,}"#, "a field's name in quotes is expected"),
        (r#"{"id":1,"id":2}"#, "field 'id' is there twice"),
        (r#"{"id":"1"}"#, "field 'id' is `1`, which is no 64-bit integer (a text)"),
        (r#"{"id":1.5}"#, "field 'id' is `1.5`, which is no 64-bit integer"),
        (r#"{"id":9223372036854775808}"#, "which is no 64-bit integer"),
        (r#"{"id":99999999999999999999999}"#, "which is no 64-bit integer"),
        (r#"{"id":1,"small":128}"#, "field 'small' is `128`, which is no 8-bit integer"),
        (r#"{"id":null}"#, "field 'id' is null, and its column is not nullable"),
        (r#"{"id":1,"name":{}}"#, "field 'name' is `{}}`, which is no text"),
        (r#"{"id":1,"name":2}"#, "field 'name' is `2`, which is no text"),
        (r#"{"id":1,"at":"soon"}"#, "which is no timestamp"),
        (r#"{"id":1,"ok":"true"}"#, "which is no boolean"),
        (r#"{"id":1,"ok":tru}"#, "where a value is expected"),
        (r#"{"id":-}"#, "where a digit is expected"),
        (r#"{"id":1,"share":1.}"#, "where a digit is expected"),
        (r#"{"id":1,"other":[1}}"#, "byte 19 is `}` where `,` or `]` is expected"),
        (r#"{"id":1,"other":{"a"}}"#, "where `:` is expected"),
        (r#"{"id":1,"name":"x}"#, "the text that begins at byte 16 has no end"),
        (r#"{"id":1,"name":"\x"}"#, "unknown escape `\\x`"),
        (r#"{"id":1,"name":"\ud83d"}"#, "half a surrogate pair"),
        (r#"{"id":1,"name":"\u12"}"#, "incomplete `\\u` escape"),
        (r#"[1]"#, "it is no JSON object"),
        ("nonsense", "it is no JSON object"),
    ];
    for (record, reason) in cases {
        let text = format!("{{\"id\":10,\"name\":\"before\"}}\n{record}\n{{\"id\":11,\"name\":\"after\"}}\n");
        let out = json(&text);
        assert!(out.contains("10 before null null null null\n11 after null"), "{record}: {out}");
        assert!(out.contains(&format!("<{record}>")) && out.contains("line 9 (byte 126)"), "{record}: {out}");
        assert!(out.contains(&reason.replace("\\\\", "\\")), "{record}: {out}");
    }
    let deep = format!("{{\"id\":1,\"other\":{}1{}}}\n{{\"id\":2}}\n", "[".repeat(100), "]".repeat(100));
    let out = json(&deep);
    assert!(out.contains("nested more than 64 levels deep") && out.starts_with("2 null"), "{out}");
}

#[test]
fn every_beginning_of_a_record_is_refused_without_harm() {
    let record =
        r#"{"id":1,"name":"a\u00e9\"b","other":[{"a":[1,2.5e3,null]},"x"],"share":-0.5,"at":"2013-01-01","ok":true}"#;
    for end in 1..record.len() {
        let out = json(&record[..end]);
        assert!(out.starts_with("file 'f', line 8 (byte 100)"), "{end}: {out}");
    }
    assert!(json(record).starts_with("1 aé\"b -0.5 "));
}

#[test]
fn invalid_utf_8_is_named_and_takes_no_neighbour_with_it() {
    let out =
        json(b"{\"id\":1,\"name\":\"\xC3\xA9 is fine, and long enough\"}\n{\"id\":2,\"name\":\"\xFF\"}\n{\"id\":3}\n");
    assert!(out.starts_with("1 é is fine, and long enough null null null null\n3 null"), "{out}");
    assert!(out.contains("line 9 (byte 146): byte 17 is not UTF-8"), "{out}");
}

#[test]
fn the_options_say_what_happens_to_malformed_records() {
    let text = "{\"id\":1}\nnonsense\n{\"id\":2}\n";
    assert!(decode("on-error = 'skip'", text, None).ends_with("skipped 1\n"));
    let error = decode_by("", text.as_bytes(), None, 10).unwrap_err().to_string();
    assert!(error.contains("file 'f', line 9 (byte 109): the record is malformed: it is no JSON object"), "{error}");
    assert!(error.contains("record: nonsense") && error.contains("on-error = \"skip\""), "{error}");
}

#[test]
fn csv_fields_are_found_by_the_header() {
    let header = b"\"ok\",ignored,name,at,id,share,small\r\n";
    let text = "TRUE,\"a,b\",\"said \"\"no\"\" and left it there\",2013-01-01 10:00:00,1,0.25,7\r\n\
                NA,,,1357034400000,2,NA,\n\
                0,x,\"NA\",NA,3,1e2,-1\n";
    let expected = "1 said \"no\" and left it there 0.25 1357034400000 7 true\n\
                    2 null null 1357034400000 null null\n\
                    3 NA 100 null -1 false\n";
    assert_eq!(decode("format = 'csv'\nnull = ['', 'NA']", text, Some(header)), expected);
}

#[test]
fn one_malformed_csv_record_takes_no_neighbour_with_it() {
    let cases = [
        ("1,a,1,,1", "it has 5 fields where there are 6 columns"),
        ("1,a,1,,1,true,x", "it has 7 fields where there are 6 columns"),
        ("one,a,1,,1,true", "field 'id' is `one`, which is no 64-bit integer"),
        (",a,1,,1,true", "field 'id' is null, and its column is not nullable"),
        ("1,a,x,,1,true", "field 'share' is `x`, which is no number"),
        ("1,a,1,,1,maybe", "field 'ok' is `maybe`, which is no boolean"),
        ("1,\"a,1,,1,true", "the quote at byte 3 has no end"),
        ("1,\"a\"b,1,,1,true", "field 2 goes on after its closing quote"),
    ];
    for (record, reason) in cases {
        let text = format!("10,before,,,,\n{record}\n11,after,,,,\n");
        let out = decode("format = 'csv'\nheader = false\non-error = 'dead-letter'", text, None);
        assert!(out.contains("10 before null null null null\n11 after null"), "{record}: {out}");
        assert!(out.contains(&format!("<{record}>")) && out.contains("line 9 (byte 114)"), "{record}: {out}");
        assert!(out.contains(reason), "{record}: {out}");
    }
}

#[test]
fn quoted_line_breaks_are_read_if_asked_for() {
    let text = "1,\"two\nlines, and a good deal of text\",,,,\n2,b,,,,\n";
    let out = decode("format = 'csv'\nheader = false\nquoted-line-breaks = true", text, None);
    assert_eq!(out, "1 two\nlines, and a good deal of text null null null null\n2 b null null null null\n");
}

#[test]
fn a_column_that_the_header_lacks_is_named() {
    let error = decode_by("format = 'csv'", b"", Some(b"id,nmae,share,at,small,ok"), 10).unwrap_err().to_string();
    assert!(error.contains("file 'f': the header has no column 'name'"), "{error}");
    assert!(error.contains("did you mean 'nmae'?") && error.contains("id, nmae, share"), "{error}");
    let error = decode_by("format = 'csv'", b"", Some(b"id,id,name,share,at,small,ok"), 10).unwrap_err().to_string();
    assert!(error.contains("names column 'id' twice"), "{error}");
}

#[test]
fn lines_are_taken_as_they_are() {
    let schema = Arc::new(Schema::new(vec![Field::new("line", DataType::Utf8View, false)]));
    let format = format("format = 'lines'");
    format.check(&schema).unwrap();
    let mut decoder = format.decoder("stdin".to_owned(), &schema, &schema, None).unwrap();
    let chunk = Chunk::new(b"one\r\n\n a longer line of text\nlast".to_vec(), 0, 0);
    let decoded = decoder.decode(&chunk, &mut Cursor::default(), 10).unwrap();
    let lines: Vec<_> = decoded.batch.columns()[0].as_string_view().iter().flatten().collect();
    assert_eq!(lines, ["one", "", " a longer line of text", "last"]);
    assert!(format.check(&self::schema()).unwrap_err().to_string().contains("one text column"));
}

#[test]
fn small_texts_do_not_keep_a_large_chunk_alive() {
    let schema = Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8View, false)]));
    let mut decoder = format("").decoder("f".to_owned(), &schema, &schema, None).unwrap();
    let record = format!("{{\"name\":\"just beyond inline\",\"rest\":\"{}\"}}\n", "x".repeat(1_000));
    let chunk = Chunk::new(record.repeat(100).into_bytes(), 0, 0);
    let batch = decoder.decode(&chunk, &mut Cursor::default(), 100).unwrap().batch;
    assert_eq!(batch.rows(), 100);
    assert!(batch.bytes() < 10_000, "{}", batch.bytes());
    assert_eq!(batch.columns()[0].as_string_view().value(99), "just beyond inline");
}

#[test]
fn nested_columns_are_read_and_one_malformed_record_takes_no_neighbour_with_it() {
    let item = Arc::new(Field::new("item", DataType::Int64, true));
    let schema = Arc::new(Schema::new(vec![
        Field::new("l", DataType::List(item), true),
        Field::new("name", DataType::Utf8View, true),
    ]));
    let format = format("on-error = 'dead-letter'");
    let mut decoder = format.decoder("f".to_owned(), &schema, &schema, None).unwrap();
    let text =
        "{\"l\":[1,2],\"name\":\"a name that is long\"}\n{\"l\":7}\n{\"l\":[3]}\n{\"l\":[4]} {\"l\":[5]}\n{\"l\":[\n";
    let chunk = Chunk::new(text.as_bytes().to_vec(), 0, 0);
    let decoded = decoder.decode(&chunk, &mut Cursor::default(), 10).unwrap();
    assert_eq!(decoded.batch.rows(), 2);
    let list = decoded.batch.columns()[0].as_list::<i32>();
    assert_eq!(list.values().as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    assert_eq!(decoded.batch.columns()[1].as_string_view().value(0), "a name that is long");
    let rejected: Vec<_> = decoded.rejects.letters.iter().map(|l| l.record.as_str()).collect();
    assert_eq!(rejected, ["{\"l\":7}", "{\"l\":[4]} {\"l\":[5]}", "{\"l\":["]);
    let csv = self::format("format = 'csv'").check(&schema).unwrap_err().to_string();
    assert!(csv.contains("column 'l' is nested"), "{csv}");
}
