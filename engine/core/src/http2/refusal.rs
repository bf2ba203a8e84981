//! Why streams and connections of HTTP/2 are refused: broken rules, and limits against those who make much work of few bytes.

use super::frame::ErrorCode;
use crate::counters::counters;

counters!(
    /// Why a stream of HTTP/2 is refused, or its whole connection.
    BadStream {
        Authority = "authority", "The pseudo-header for the host and the Host field named different hosts, or the first was empty.";
        BlockTooLong = "block_too_long", "A block of fields was longer than twice head_bytes_max. The connection ends.";
        ClosedFlood = "closed_flood", "Too many frames for streams that had ended. The connection ends.";
        Compression = "compression", "A block of fields could not be unpacked. The connection ends.";
        ConnectionField = "connection_field", "A field that is about one connection of HTTP/1.1.";
        Continuation = "continuation", "A block of fields was not followed by its rest, or a rest by no block. The connection ends.";
        ContinuationFlood = "continuation_flood", "A block of fields came in too many frames. The connection ends.";
        EmptyDataFlood = "empty_data_flood", "Too many frames of bodies without a byte. The connection ends.";
        FieldName = "field_name", "The name of a field was empty, not in lower case, or had bytes that names do not have.";
        FieldValue = "field_value", "The value of a field had bytes that values do not have, or space around it.";
        FlowControl = "flow_control", "More was sent than the window had. The connection ends.";
        FrameSize = "frame_size", "A frame was longer than was announced, or had another length than its kind has. The connection ends.";
        Length = "length", "The body was not as long as Content-Length said, or that was said twice or not as a number.";
        ListTooLong = "list_too_long", "The fields of a request, unpacked, were longer than head_bytes_max: 431.";
        Logon = "logon", "A logon that authenticates the connection: the client is told to come by HTTP/1.1.";
        NoRoom = "no_room", "limits.connections was reached: a stream takes as much as a connection of HTTP/1.1. The client may send it again.";
        PingFlood = "ping_flood", "Too many PING. The connection ends.";
        Preface = "preface", "The client did not begin as HTTP/2 begins. The connection ends.";
        PriorityFlood = "priority_flood", "Too many frames that mean nothing: priorities, and unknown ones. The connection ends.";
        PseudoHeader = "pseudo_header", "A pseudo-header was missing, unknown, repeated, damaged or behind a field.";
        ResetFlood = "reset_flood", "Too many streams were reset by the client, or had to be by its faults (CVE-2023-44487, CVE-2025-8671). The connection ends.";
        Settings = "settings", "A setting had a value that it cannot have. The connection ends.";
        SettingsFlood = "settings_flood", "Too many SETTINGS. The connection ends.";
        StreamClosed = "stream_closed", "Something followed the end of a request.";
        StreamNumber = "stream_number", "A frame was for a stream that it cannot be for. The connection ends.";
        TooManyStreams = "too_many_streams", "limits.http2_streams was reached. The client may send it again.";
        Trailer = "trailer", "The fields behind a body were too long, damaged, or not the end of it.";
        Window = "window", "A window was opened by nothing, or too far. The connection ends.";
        WindowFlood = "window_flood", "Windows were opened too often for what was sent. The connection ends.";
    }
);

impl BadStream {
    /// What the client is told.
    pub fn code(self) -> ErrorCode {
        match self {
            BadStream::BlockTooLong
            | BadStream::ClosedFlood
            | BadStream::ContinuationFlood
            | BadStream::EmptyDataFlood
            | BadStream::PingFlood
            | BadStream::PriorityFlood
            | BadStream::ResetFlood
            | BadStream::SettingsFlood
            | BadStream::WindowFlood => ErrorCode::EnhanceYourCalm,
            BadStream::Compression => ErrorCode::Compression,
            BadStream::FlowControl => ErrorCode::FlowControl,
            BadStream::FrameSize => ErrorCode::FrameSize,
            BadStream::Logon => ErrorCode::Http11Required,
            BadStream::NoRoom | BadStream::TooManyStreams => ErrorCode::RefusedStream,
            BadStream::StreamClosed => ErrorCode::StreamClosed,
            BadStream::Authority
            | BadStream::ConnectionField
            | BadStream::Continuation
            | BadStream::FieldName
            | BadStream::FieldValue
            | BadStream::Length
            | BadStream::ListTooLong
            | BadStream::Preface
            | BadStream::PseudoHeader
            | BadStream::Settings
            | BadStream::StreamNumber
            | BadStream::Trailer
            | BadStream::Window => ErrorCode::Protocol,
        }
    }
}
