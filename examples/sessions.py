"""Sessions: state that stays on the server between calls, that forks, travels and comes back.

python examples/sessions.py [host:port]
"""

import os
import sys

import cellstate

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CELLSTATE_ADDRESS", "localhost:50051")

with cellstate.Client(ADDRESS) as client, client.session("shakespeare", ttl_s=300, seed=7, labels={"example": "sessions"}) as session:
    print("JULIET:" + session.one_to_many("JULIET:", max_steps=120).text())
    print(f"\n[{session.name} of {session.model} at position {session.position}; the next call goes on from there]\n")

    with session.fork(seed=1) as one, session.fork(seed=2) as other:  # two futures of one past
        print("...", one.generate(max_steps=60).text().replace("\n", " / "))
        print("...", other.generate(max_steps=60).text().replace("\n", " / "))

    snapshot = session.export()  # a file: keep it, or import it on another server
    with client.import_session(snapshot, ttl_s=300) as copy:
        same = copy.generate(max_steps=60).text() == session.generate(max_steps=60).text()
        print(f"\na snapshot of {len(snapshot):,} bytes goes on as the session itself does: {same}")

    print("sessions of this example:", [info.name for info in client.sessions('labels.example="sessions"')])

    try:
        session.generate(max_steps=10, temperature=-1).text()
    except cellstate.InvalidInput as error:
        print("an error tells what to do:", error)
