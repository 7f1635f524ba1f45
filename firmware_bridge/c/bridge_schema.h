/* The schema of the edgecl bridge: every number and layout that host and device must share.
 *
 * The host parses this file, so nothing is defined twice. There are only two forms, which keeps it easy to parse:
 *     #define BRIDGE_NAME number
 *     #define BRIDGE_FIELDS_NAME(F) F(type, name) ...      types u8 u16 u32 u64 f32, little-endian, unpadded
 * BRIDGE_SCHEMA_HASH covers all of them except itself. After a change: python -m firmware_bridge.schema --write
 */
#ifndef BRIDGE_SCHEMA_H
#define BRIDGE_SCHEMA_H

#ifndef BRIDGE_SCHEMA_HASH
#define BRIDGE_SCHEMA_HASH 0xE252AE72
#endif

/* Versions of the frame layout that this code speaks. */
#define BRIDGE_VERSION_LEAST 1
#define BRIDGE_VERSION_MOST 1

/* A frame: COBS(header, payload, CRC-32 of both), 0x00. version_flags: version << 4 | flags. */
#define BRIDGE_FIELDS_HEADER(F) F(u8, version_flags) F(u8, channel) F(u16, sequence) F(u32, time)
#define BRIDGE_FLAG_MORE 1      /* further fragments of this object follow */
#define BRIDGE_FLAG_CONTINUED 2 /* earlier fragments precede; the last fragment ends with the CRC-32 of the object */

/* Channels. The CRC starts at 0 on LINK, at the schema hash on COMMAND, at the CRC of its table row on a stream. */
#define BRIDGE_CHANNEL_LINK 0
#define BRIDGE_CHANNEL_COMMAND 1
#define BRIDGE_CHANNEL_FIRST 2 /* the first row of the channel table; the others follow */

/* Messages on LINK: the first byte of the payload. A device can't ask the host to do anything but grant credit. */
#define BRIDGE_MESSAGE_HELLO_ASK 1
#define BRIDGE_FIELDS_HELLO_ASK(F) F(u8, message) F(u8, version_least) F(u8, version_most) F(u32, nonce) \
    F(u32, session) F(u16, frame_most)
/* session_boot: the boot in which the session began; if it changes, the device has forgotten the session. */
#define BRIDGE_MESSAGE_HELLO 2 /* the rows of the channel table follow. Fields up to schema never move */
#define BRIDGE_FIELDS_HELLO(F) F(u8, message) F(u8, version_least) F(u8, version_most) F(u32, schema) F(u64, device) \
    F(u32, boot) F(u32, firmware) F(u16, frame_most) F(u16, receive_window) F(u32, nonce) F(u32, session) \
    F(u32, session_boot) F(u16, next) F(u8, channels)
#define BRIDGE_FIELDS_CHANNEL(F) F(u8, type) F(u8, elements) F(u32, millihertz) F(f32, scale) F(u8, name_size) \
    F(u8, unit_size)
#define BRIDGE_MESSAGE_CREDIT 3 /* frames of the channel whose sequence is before limit may be sent */
#define BRIDGE_FIELDS_CREDIT(F) F(u8, message) F(u8, channel) F(u16, limit)
#define BRIDGE_MESSAGE_CREDIT_ASK 4 /* next: the sequence that is waiting for credit */
#define BRIDGE_FIELDS_CREDIT_ASK(F) F(u8, message) F(u8, channel) F(u16, next)
#define BRIDGE_MESSAGE_TIME_ASK 5 /* asked: the host's clock in microseconds, sent back unchanged */
#define BRIDGE_FIELDS_TIME_ASK(F) F(u8, message) F(u64, asked)
#define BRIDGE_MESSAGE_TIME 6
#define BRIDGE_FIELDS_TIME(F) F(u8, message) F(u64, asked) F(u32, received) F(u32, sent)
#define BRIDGE_MESSAGE_STATS_ASK 7
#define BRIDGE_FIELDS_STATS_ASK(F) F(u8, message)
#define BRIDGE_MESSAGE_STATS 8
#define BRIDGE_FIELDS_STATS(F) F(u8, message) F(u32, accepted) F(u32, malformed) F(u32, oversize) F(u32, too_short) \
    F(u32, channel) F(u32, corrupt) F(u32, version) F(u32, sent) F(u32, dropped) F(u32, starved) F(u32, executed) \
    F(u32, duplicates)
#define BRIDGE_MESSAGE_ACK 9 /* next: the command expected next; held: bit i is set if next + 1 + i is waiting for it */
#define BRIDGE_FIELDS_ACK(F) F(u8, message) F(u16, next) F(u8, held)

/* On COMMAND the host sends COMMAND and arguments; the device answers with RESULT and data of the same sequence. */
#define BRIDGE_FIELDS_COMMAND(F) F(u8, command)
#define BRIDGE_FIELDS_RESULT(F) F(u16, next) F(u8, held) F(u8, status)
#define BRIDGE_COMMAND_ECHO 1   /* returns the arguments as data */
#define BRIDGE_COMMAND_BAUD 2   /* argument: u32 */
#define BRIDGE_COMMAND_FIRST 64 /* the board's own commands start here */
#define BRIDGE_STATUS_OK 0
#define BRIDGE_STATUS_UNKNOWN 1     /* no such command */
#define BRIDGE_STATUS_REFUSED 2     /* bad arguments, or not possible now */
#define BRIDGE_STATUS_INTERRUPTED 3 /* by a reset: it may be done, half done or not done; not run again */

/* Types of a channel's values; an object is a string of bytes of any length, in fragments. */
#define BRIDGE_TYPE_I16 1
#define BRIDGE_TYPE_I32 2
#define BRIDGE_TYPE_F32 3
#define BRIDGE_TYPE_U8 4
#define BRIDGE_TYPE_OBJECT 5

/* Limits, each with its reason. The bytes of a frame are header, payload and CRC, before COBS. */
#define BRIDGE_FRAME_LEAST 96      /* minimum of a device's largest frame: a full STATS and a command must fit */
#define BRIDGE_FRAME_LIMIT 1024    /* bounds the host's buffer; one flipped bit costs 11 ms of line at 921600 baud */
#define BRIDGE_OBJECT_LIMIT 65536  /* the most that a device can make the host hold for one unfinished object */
#define BRIDGE_TABLE_LIMIT 14      /* channels of a device: the whole HELLO then fits into 700 bytes */
#define BRIDGE_ELEMENT_LIMIT 64    /* values of one sample: 64 f32 are 256 bytes, the default frame */
#define BRIDGE_NAME_LIMIT 16       /* bytes of a channel's name, which people type as part of a source */
#define BRIDGE_UNIT_LIMIT 12       /* bytes of a unit: "m/s^2", "deg/s" */
#define BRIDGE_RATE_LIMIT 1000000000 /* millihertz: the clock resolves one sample per microsecond */
#define BRIDGE_WINDOW 8            /* open commands: held has 8 bits; 8 x 33 bytes wait for their turn */
#define BRIDGE_ARGUMENT_LIMIT 32   /* bytes of a command's arguments */
#define BRIDGE_DATA_LIMIT 32       /* bytes of a result's data, kept for each command of the window */
#define BRIDGE_ANNOUNCE_MS 1000    /* interval of unasked HELLOs until a host has asked */
#define BRIDGE_CREDIT_ASK_MS 100   /* interval at which a channel without credit asks for it */
#define BRIDGE_SILENCE_MS 5000     /* without a valid frame for this long, the host counts as gone */
#define BRIDGE_BAUD_TRIAL_MS 1000  /* a new baud rate is given up after this long without a valid frame */

#endif
