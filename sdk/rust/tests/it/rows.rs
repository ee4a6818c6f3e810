//! Every column type through the buffers and back.

use tidemill::prelude::*;
use tidemill::row::EmitRow;
use tidemill::value::{Cursor, Writer};

#[derive(Row, Clone, Debug, PartialEq)]
struct Point {
    x: i32,
    label: Option<String>,
}

#[derive(Row, Clone, Debug, PartialEq)]
struct Everything<'a> {
    a: i8,
    b: u16,
    c: Option<f32>,
    flag: bool,
    maybe: Option<bool>,
    #[row(rename = "the text")]
    text: &'a str,
    note: Option<&'a str>,
    raw: &'a [u8],
    owned: String,
    bytes: Vec<u8>,
    at: Timestamp,
    day: Option<Date>,
    point: Point,
    far: Option<Point>,
    r#type: u64,
}

fn sample(n: i64) -> Everything<'static> {
    let present = n % 2 == 0;
    let texts = ["", "é", "a rather long text that is not inlined anywhere"];
    let text = texts[n as usize % 3];
    Everything {
        a: n as i8 - 5,
        b: u16::MAX - n as u16,
        c: present.then_some(n as f32 / 3.0),
        flag: n % 3 == 0,
        maybe: present.then_some(n % 4 == 0),
        text,
        note: (n % 5 == 0).then_some(text),
        raw: text.as_bytes(),
        owned: format!("{text}{n}"),
        bytes: vec![n as u8; n as usize % 4],
        at: Timestamp::from_millis(-n),
        day: present.then(|| Date::from_days(n as i32)),
        point: Point { x: n as i32, label: present.then(|| n.to_string()) },
        far: (!present).then(|| Point { x: -1, label: (n % 3 == 0).then(|| "far".to_owned()) }),
        r#type: u64::MAX - n as u64,
    }
}

#[test]
fn every_type_comes_back_as_it_went() {
    for count in [0, 1, 7, 8, 9, 64, 100] {
        let rows: Vec<_> = (0..count).map(sample).collect();
        let mut writer = <Everything<'static> as EmitRow>::Writer::default();
        // Twice, so that what a writer keeps between batches shows.
        for _ in 0..2 {
            writer.clear();
            rows.iter().for_each(|row| Everything::write(&mut writer, row));
        }
        let mut columns = Vec::new();
        writer.columns(&mut columns);
        let reader = Everything::reader(&mut Cursor::all(&columns), rows.len());
        let back: Vec<_> = (0..rows.len()).map(|row| Everything::view(&reader, row)).collect();
        assert_eq!(back, rows);
    }
}

#[test]
fn fields_have_the_names_and_types_of_the_plan() {
    let fields = Everything::fields();
    let shown: Vec<String> =
        fields.iter().map(|f| format!("{}: {}{}", f.name, f.data_type, if f.nullable { "?" } else { "" })).collect();
    assert_eq!(
        shown.join("\n"),
        "a: int8\nb: uint16\nc: float32?\nflag: boolean\nmaybe: boolean?\nthe text: utf8\nnote: utf8?\nraw: binary\n\
         owned: utf8\nbytes: binary\nat: timestamp\nday: date?\npoint: struct<x: int32, label: utf8>\n\
         far: struct<x: int32, label: utf8>?\ntype: uint64"
    );
}

#[test]
fn text_that_is_not_utf8_is_replaced_and_not_believed() {
    let columns =
        [tidemill::abi::ColumnView { validity: &[], offsets: &[0, 0, 0, 0, 2, 0, 0, 0], values: &[0xff, 0xfe] }];
    let reader = <&str as tidemill::Value>::reader(&mut Cursor::all(&columns), 1);
    assert_eq!(<&str as tidemill::Value>::get(&reader, 0), "\u{FFFD}");
}
