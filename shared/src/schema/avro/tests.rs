use super::*;

fn avro(schema: &str) -> Avro {
    Avro::parse(schema, &[]).expect("a schema")
}

/// What comes back of JSON that is written and read.
fn back(schema: &str, json: &str) -> String {
    let avro = avro(schema);
    let bytes = avro.encode(json).unwrap_or_else(|wrong| panic!("{schema}: {wrong:?}"));
    let shown = avro.decode(&bytes).unwrap_or_else(|| panic!("{schema}: {bytes:?}"));
    assert_eq!(avro.encode(&shown).expect("what was shown"), bytes, "{schema}: {shown} is read as something else");
    for end in 0..bytes.len() {
        assert_eq!(avro.decode(&bytes[..end]), None, "{schema}: cut off at {end}");
    }
    assert_eq!(avro.decode(&[&bytes, &[0][..]].concat()), None, "{schema}: with a byte behind it");
    shown
}

fn wrong(schema: &str, json: &str) -> (String, String, String) {
    let Mismatch { pointer, expected, found } = avro(schema).encode(json).expect_err(json);
    (pointer, expected, found)
}

#[test]
fn every_type_comes_back_as_it_was() {
    for (schema, json) in [
        (r#""null""#, "null"),
        (r#""boolean""#, "true"),
        (r#""int""#, "-2147483648"),
        (r#""long""#, "9223372036854775807"),
        (r#""float""#, "1.5"),
        (r#""double""#, "0.1"),
        (r#""double""#, r#""NaN""#),
        (r#""double""#, r#""-Infinity""#),
        (r#""string""#, r#""caf\u00e9 \"x\"""#),
        (r#""bytes""#, r#""a\u0000ÿ""#),
        (r#"{"type":"fixed","name":"F","size":2}"#, r#""ÿ\u0001""#),
        (r#"{"type":"fixed","name":"D","size":12,"logicalType":"duration"}"#, r#""abcdefghijkl""#),
        (r#"{"type":"enum","name":"E","symbols":["A","B"]}"#, r#""B""#),
        (r#"{"type":"array","items":"int"}"#, "[1,2,3]"),
        (r#"{"type":"array","items":"int"}"#, "[]"),
        (r#"{"type":"map","values":"long"}"#, r#"{"b":1,"a":2}"#),
        (r#"{"type":"map","values":"long"}"#, "{}"),
        (r#"{"type":"int","logicalType":"date"}"#, "19000"),
        (r#"{"type":"long","logicalType":"timestamp-millis"}"#, "1700000000000"),
        (r#"{"type":"string","logicalType":"uuid"}"#, r#""936da01f-9abd-4d9d-80c7-02af85c822a8""#),
        (r#"{"type":"fixed","name":"U","size":16,"logicalType":"uuid"}"#, r#""936da01f-9abd-4d9d-80c7-02af85c822a8""#),
        (r#"{"type":"bytes","logicalType":"decimal","precision":30,"scale":9}"#, "12345678901234567890.123456789"),
        (r#"{"type":"fixed","name":"P","size":4,"logicalType":"decimal","precision":5,"scale":2}"#, "-12.50"),
        (r#"["null","string"]"#, "null"),
        (r#"["null","string"]"#, r#""x""#),
        (r#"["null","long","string",{"type":"array","items":"int"}]"#, "[7]"),
    ] {
        let shown = back(schema, json);
        let (shown, json): (String, String) = (shown.replace("\\u0000", "0"), json.replace("\\u0000", "0"));
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert!(shown == json || value(&shown) == value(&json), "{schema}: {json} became {shown}");
    }
}

#[test]
fn numbers_keep_all_their_digits() {
    let record = r#"{"type":"record","name":"R","fields":[{"name":"l","type":"long"},
        {"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":38,"scale":2}}]}"#;
    let sent = r#"{"l":9007199254740993,"d":900719925474099312345678.01}"#;
    assert_eq!(back(record, sent), sent);
    assert_eq!(back(record, r#"{"l":-0,"d":"1e3"}"#), r#"{"l":0,"d":1000.00}"#);
}

#[test]
fn defaults_stand_in_for_what_is_absent() {
    let record = r#"{"type":"record","name":"R","namespace":"x","fields":[
        {"name":"s","type":"string","default":"d"},
        {"name":"u","type":["null","int"],"default":null},
        {"name":"m","type":{"type":"map","values":"int"},"default":{"a":1}},
        {"name":"n","type":{"type":"record","name":"N","fields":[{"name":"i","type":"int","default":7}]},"default":{}},
        {"name":"d","type":{"type":"bytes","logicalType":"decimal","precision":4,"scale":2},"default":"\u0001\u0002"}]}"#;
    assert_eq!(back(record, "{}"), r#"{"s":"d","u":null,"m":{"a":1},"n":{"i":7},"d":2.58}"#);
}

#[test]
fn unions_are_plain_where_json_tells_them_apart_and_tagged_where_not() {
    let records = r#"["null",{"type":"record","name":"x.A","fields":[{"name":"a","type":"int"}]},
        {"type":"record","name":"x.B","fields":[{"name":"a","type":"int"}]}]"#;
    // The first that fits, or the one that is named.
    assert_eq!(back(records, r#"{"a":1}"#), r#"{"x.A":{"a":1}}"#);
    assert_eq!(back(records, r#"{"x.B":{"a":1}}"#), r#"{"x.B":{"a":1}}"#);
    assert_eq!(back(r#"["int","long"]"#, "5000000000"), r#"{"long":5000000000}"#);
    assert_eq!(back(r#"["null","int"]"#, r#"{"int":5}"#), "5");
    // NaN is text, and so is a string.
    assert_eq!(back(r#"["string","double"]"#, r#"{"double":"NaN"}"#), r#"{"double":"NaN"}"#);
    // What looks like a tag and is none.
    let map = r#"["null",{"type":"map","values":"string"}]"#;
    assert_eq!(back(map, r#"{"a":"x"}"#), r#"{"a":"x"}"#);
    assert_eq!(back(map, r#"{"map":"x"}"#), r#"{"map":{"map":"x"}}"#);
    let own = r#"{"type":"record","name":"n","fields":[{"name":"n","type":["null","n"]}]}"#;
    assert_eq!(back(own, r#"{"n":{"n":{"n":null}}}"#), r#"{"n":{"n":{"n":null}}}"#);
    assert_eq!(back(own, r#"{"n":{"n":null}}"#), r#"{"n":{"n":{"n":null}}}"#);
}

#[test]
fn types_of_references_and_recursive_ones_are_found() {
    let reference = Reference {
        name: "x.A".into(),
        schema: r#"{"type":"record","name":"A","namespace":"x","fields":[{"name":"a","type":"int"}]}"#.into(),
    };
    let list = r#"{"type":"record","name":"L","namespace":"x","fields":[{"name":"v","type":"A"},{"name":"next","type":["null","L"]}]}"#;
    let avro = Avro::parse(list, &[reference]).expect("a schema");
    let sent = r#"{"v":{"a":1},"next":{"v":{"a":2},"next":null}}"#;
    assert_eq!(avro.decode(&avro.encode(sent).expect("fits")).expect("whole"), sent);
    assert!(Avro::parse(list, &[]).is_err());
}

#[test]
fn what_does_not_fit_is_named_by_place_and_kind_and_never_shown() {
    let record = r#"{"type":"record","name":"x.R","fields":[{"name":"a","type":"int"},
        {"name":"b","type":["null",{"type":"array","items":{"type":"enum","name":"E","symbols":["P","Q"]}}],"default":null}]}"#;
    let named = |pointer: &str, expected: &str, found: &str| (pointer.into(), expected.into(), found.into());
    assert_eq!(wrong(record, r#"{"a":"s3cret"}"#), named("/a", "int", "string of 6 characters"));
    assert_eq!(wrong(record, r#"{"a":1.0}"#), named("/a", "int", "number"));
    assert_eq!(wrong(record, r#"{"a":2147483648}"#), named("/a", "int", "number"));
    assert_eq!(wrong(record, "{}"), named("/a", "int", "absent"));
    assert_eq!(
        wrong(record, r#"{"a":1,"c~/d":[1]}"#),
        named("/c~0~1d", "no such field in record x.R", "array of 1 items")
    );
    assert_eq!(wrong(record, r#"{"a":1,"b":["P","s3cret"]}"#), named("/b/1", "one of P, Q", "string of 6 characters"));
    assert_eq!(wrong(record, r#"{"a":1,"b":true}"#), named("/b", "one of null, array", "boolean"));
    assert_eq!(wrong(record, r#"{"a":1,"a":2}"#).0, "");
    assert_eq!(wrong(r#""string""#, r#""\ud800""#), named("", "string", "string"));
    assert_eq!(wrong(r#""bytes""#, r#""€""#).2, "string of 1 characters");
    assert_eq!(wrong(r#""float""#, "1e999").1, "float");
}

#[test]
fn hostile_values_and_records_end_early() {
    // Records that are deeper than any stack.
    let list = avro(r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}"#);
    assert_eq!(list.decode(&vec![2; 10_000_000]), None);
    // A block of more nulls than there is memory.
    let mut nulls = Vec::new();
    super::super::wire::push_long(&mut nulls, i64::MAX);
    assert_eq!(avro(r#"{"type":"array","items":"null"}"#).decode(&nulls), None);
    wire_min(&mut nulls);
    assert_eq!(avro(r#"{"type":"array","items":"null"}"#).decode(&nulls), None);
    // A text that says it is longer than the record.
    assert_eq!(avro(r#""string""#).decode(&[0xfe, 0xff, 0xff, 0xff, 0x0f, b'a']), None);
    // Unions that multiply: each level fits both, and the bottom none.
    let tree = r#"{"type":"record","name":"A","fields":[{"name":"n","type":["int","A",
        {"type":"record","name":"B","fields":[{"name":"n","type":["int","B","A"]}]}]}]}"#;
    let deep = format!("{}true{}", r#"{"n":"#.repeat(60), "}".repeat(60));
    let Mismatch { expected, .. } = avro(tree).encode(&deep).expect_err("no end");
    assert!(!expected.is_empty());
}

fn wire_min(out: &mut Vec<u8>) {
    out.clear();
    super::super::wire::push_long(out, i64::MIN);
    super::super::wire::push_long(out, 1);
}
