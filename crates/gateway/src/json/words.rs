//! Messages and statuses as JSON, by the rules of etcd's grpc-gateway: numbers of 64 bits are strings, bytes
//! are base64, enums are names; fields have the names of the `.proto` files, and what is zero is left
//! out. On input a field may also be named in lower camel case, a number may be a number, an enum may be a
//! number, and what is not known is passed over.

use bytes::Bytes;
use http::StatusCode;
use prost::Message;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions,
};
use serde_json::{Deserializer, Serializer, Value};
use tonic::{Code, Status};

/// Reads a message from the first JSON value of `text` and encodes it. An empty text and `null` are the
/// empty message. Depth is bounded by the parser: 128.
///
/// # Errors
/// `InvalidArgument` with what is wrong and where.
pub(super) fn message(descriptor: MessageDescriptor, text: &[u8]) -> Result<Bytes, Status> {
    let text = text.trim_ascii_start();
    if text.is_empty() || text.starts_with(b"null") {
        return Ok(Bytes::new());
    }
    // Not lenient: the library would pass over enums that it does not know, too, and a compare with a
    // misspelt result would compare something else.
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let mut json = Deserializer::from_slice(text);
    let strict = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &options);
    let message = strict.or_else(|error| {
        let Some(Ok(mut value)) = Deserializer::from_slice(text).into_iter::<Value>().next() else {
            return Err(error);
        };
        keep_known(&descriptor, &mut value);
        DynamicMessage::deserialize_with_options(descriptor, value, &options)
    });
    let message = message.map_err(|error| Status::invalid_argument(format!("json: {error}")))?;
    Ok(message.encode_to_vec().into())
}

/// Removes what is no field of the message.
fn keep_known(descriptor: &MessageDescriptor, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    fields.retain(|name, value| {
        let field =
            descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
        let Some(field) = field else { return false };
        if let (Kind::Message(inner), false) = (field.kind(), field.is_map()) {
            match value {
                Value::Array(values) => {
                    values.iter_mut().for_each(|value| keep_known(&inner, value));
                }
                value => keep_known(&inner, value),
            }
        }
        true
    });
}

/// Writes an encoded message as JSON behind what is in `out`.
///
/// # Errors
/// `Internal` when the bytes are no such message.
pub(super) fn write(
    descriptor: MessageDescriptor,
    message: Bytes,
    out: &mut Vec<u8>,
) -> Result<(), Status> {
    let internal = |error: &dyn ToString| Status::internal(error.to_string());
    let message = DynamicMessage::decode(descriptor, message).map_err(|error| internal(&error))?;
    let options = SerializeOptions::new()
        .stringify_64_bit_integers(true)
        .use_enum_numbers(false)
        .use_proto_field_name(true)
        .skip_default_fields(true);
    let begin = out.len();
    message
        .serialize_with_options(&mut Serializer::new(&mut *out), &options)
        .map_err(|error| internal(&error))?;
    escape_as_go(out, begin);
    Ok(())
}

/// A refusal: its HTTP status and its body.
pub(super) fn refusal(status: &Status) -> (StatusCode, Vec<u8>) {
    let text = Value::from(status.message());
    let code = status.code() as i32;
    let mut body = format!(r#"{{"error":{text},"code":{code},"message":{text}}}"#).into_bytes();
    escape_as_go(&mut body, 0);
    (http_status(status.code()), body)
}

/// A refusal in the midst of a stream: its line.
pub(super) fn stream_refusal(status: &Status) -> Vec<u8> {
    let text = Value::from(status.message());
    let code = status.code() as i32;
    let http = http_status(status.code());
    let reason = http.canonical_reason().unwrap_or_default();
    let mut line = format!(
        r#"{{"error":{{"grpc_code":{code},"http_code":{},"message":{text},"http_status":"{reason}"}}}}"#,
        http.as_u16()
    )
    .into_bytes();
    escape_as_go(&mut line, 0);
    line.push(b'\n');
    line
}

/// The status of HTTP that grpc-gateway gives for a code.
const fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Escapes what Go's encoder escapes though JSON need not. Such characters stand in strings only.
fn escape_as_go(text: &mut Vec<u8>, begin: usize) {
    const RARE: [(&str, &str); 5] = [
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ];
    let written = &text[begin..];
    if !written.iter().any(|byte| matches!(byte, b'<' | b'>' | b'&' | 0xe2)) {
        return;
    }
    // What was written here is UTF-8 by construction.
    let mut escaped = String::from_utf8_lossy(written).into_owned();
    for (from, to) in RARE {
        escaped = escaped.replace(from, to);
    }
    text.truncate(begin);
    text.extend_from_slice(escaped.as_bytes());
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
