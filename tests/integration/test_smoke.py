from cellstate.v1.inference_pb2 import *
from cellstate.v1.model_pb2 import ListModelsRequest
from cellstate.v1.session_pb2 import *
from tests.integration.stubs import *


async def test_all(stubs):
    print([m.name for m in (await stubs.models.ListModels(ListModelsRequest())).models])
    r = await stubs.inference.OneToOne(OneToOneRequest(target=on_model("flowers"), input=values([[1,2,3,4]])))
    print(r)
    r = await stubs.inference.ManyToOne(iter(many_to_one(on_model("lstm-series"), values([1,2,3]), values([4]))))
    print(r)
    async for r in stubs.inference.OneToMany(OneToManyRequest(target=on_model("lstm-text"), input=text("Hello"), generation=generation(20, seed=3))):
        print(r)
    for r in await responses(stubs.inference.ManyToMany(iter([open_many(on_model("lstm-series")), chunk(values([1,2,3])), generate(generation(4)), STOP, chunk(values([1]))]))):
        print(r)
    s = (await stubs.sessions.CreateSession(CreateSessionRequest(session=Session(model="gru-text", name="a")))).session
    print(s)
    async for r in stubs.inference.OneToMany(OneToManyRequest(target=on_session("a"), generation=generation(5, seed=3))):
        print(r)
    print((await stubs.sessions.GetSession(GetSessionRequest(name="a"))).session)
    print(await refusal(stubs.sessions.GetSession(GetSessionRequest(name="b"))))
    print(await refusal(stubs.inference.OneToMany(OneToManyRequest(target=on_session("b"), generation=generation(5, seed=3)))))
    print(await stubs.inference.Run(RunRequest(programs=[Program(target=on_model("pairs"), input=values([[1,2]]), generation=generation(3)), Program(target=on_model("pairs"), input=values([[1,2,3]]))])))
