#include "app.h"

static uint8_t pattern[4096]; /* the object that APP_OBJECT sends: byte i is i * 7 mod 251 */

static uint8_t command(void *board, uint8_t id, const uint8_t *arguments, uint8_t size, uint8_t *data, uint8_t *filled) {
    app *a = board;
    uint32_t value = 0;
    if (size != 4) return BRIDGE_STATUS_REFUSED;
    for (uint8_t i = 4; i-- > 0;) value = value << 8 | arguments[i];
    switch (id) {
    case APP_COUNT:
        value = a->board.effect(value);
        for (*filled = 0; *filled < 4; value >>= 8) data[(*filled)++] = (uint8_t)value;
        return BRIDGE_STATUS_OK;
    case APP_OBJECT:
        if (value > sizeof pattern || a->sending) return BRIDGE_STATUS_REFUSED;
        a->object = (bridge_object){pattern, value, 0, 0, 1};
        a->sending = true;
        return BRIDGE_STATUS_OK;
    case APP_RESET:
        a->resetting = true; /* after the result has had time to leave */
        a->reset_asked = a->port.now(a);
        return BRIDGE_STATUS_OK;
    default: return BRIDGE_STATUS_UNKNOWN;
    }
}

bool app_init(app *a, bridge_port port, app_board board, bridge_channel imu, bridge_identity identity,
              bridge_retained *retained, uint32_t baud) {
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = (uint8_t)(i * 7 % 251);
    a->port = port;
    a->port.board = a;
    a->port.command = command;
    a->board = board;
    a->channels[0] = imu;
    a->channels[1] = (bridge_channel){"log", "", BRIDGE_TYPE_OBJECT, 1, 0, 1};
    a->sending = a->resetting = false;
    return bridge_init(&a->link, &a->port, identity, a->channels, 2, retained, baud);
}

void app_poll(app *a) {
    if (a->sending) a->sending = !bridge_object_send(&a->link, &a->object);
    bridge_poll(&a->link);
    if (a->resetting && a->port.now(a) - a->reset_asked > 50000) a->board.reset();
}
